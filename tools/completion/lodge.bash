# bash completion of the lodge command
_lodge() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    if [ "$COMP_CWORD" = 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "run doctor help --help --version" -- "$cur")
        return
    fi
    case $prev in
    --engine) mapfile -t COMPREPLY < <(compgen -W "auto kvm soft metal" -- "$cur") ;;
    --code-cache) mapfile -t COMPREPLY < <(compgen -W "16M 48M 128M 512M" -- "$cur") ;;
    --cpu-model) mapfile -t COMPREPLY < <(compgen -W "host x86-64-v1 x86-64-v2 x86-64-v3 x86-64-v4" -- "$cur") ;;
    --net) mapfile -t COMPREPLY < <(compgen -W "user none user,forward=" -- "$cur") ;;
    --serial) mapfile -t COMPREPLY < <(compgen -W "stdio none file: unix:" -- "$cur") ;;
    --firmware) mapfile -t COMPREPLY < <(compgen -W "bios uefi uefi,vars=" -- "$cur"; compgen -f -- "$cur") ;;
    --boot) mapfile -t COMPREPLY < <(compgen -W "disk cdrom net disk,cdrom,net" -- "$cur") ;;
    --kernel | --initrd | --disk | --cdrom) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    --dump-acpi) mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
    help) mapfile -t COMPREPLY < <(compgen -W "run doctor" -- "$cur") ;;
    *)
        case ${COMP_WORDS[1]} in
        run) mapfile -t COMPREPLY < <(compgen -W "--engine --cpus --memory --kernel --firmware --boot --initrd --append --disk --cdrom --net --serial
            --code-cache --cpu-model --name --no-reboot --debug-exit --dump-acpi --stats --verbose --help" -- "$cur") ;;
        doctor) mapfile -t COMPREPLY < <(compgen -W "--json --help" -- "$cur") ;;
        esac
        ;;
    esac
}
complete -F _lodge lodge
