"""What the python-loop job runs: dictionaries, strings, calls, arithmetic."""


def collatz(n):
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


longest = max(range(1, 4000), key=collatz)
words = {}
for i in range(20000):
    word = f"word{i * 7919 % 997}"
    words[word] = words.get(word, 0) + 1
assert longest == 3711 and sum(words.values()) == 20000
