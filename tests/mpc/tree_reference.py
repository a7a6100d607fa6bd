"""Comparison keys once more, slowly and straight from the definitions, in NumPy alone.

Element by element, nothing packed: seeds are four words, t-bits are bits of their own.
"""

import numpy as np

_U32 = 0xFFFFFFFF
_MASK = 0xFFFFFFFC


def block(seed, domain, rounds):
    """16 words of a ChaCha block: 128-bit key `seed` (four ints), `domain` (four ints)."""
    initial = [0x61707865, 0x3120646E, 0x79622D36, 0x6B206574, *seed, *seed, *domain]
    s = list(initial)

    def add_xor_rotate(a, b, d, bits):
        s[a] = (s[a] + s[b]) & _U32
        s[d] ^= s[a]
        s[d] = ((s[d] << bits) | (s[d] >> (32 - bits))) & _U32

    for i in range(rounds):
        turn = 0 if i % 2 == 0 else 1
        for column in range(4):
            a, b, c, d = (4 * row + (column + turn * row) % 4 for row in range(4))
            add_xor_rotate(a, b, d, 16)
            add_xor_rotate(c, d, b, 12)
            add_xor_rotate(a, b, d, 8)
            add_xor_rotate(c, d, b, 7)
    return [(x + y) & _U32 for x, y in zip(s, initial)]


def _domain(role, level, domain):
    gate, session = domain
    return [(role << 8) | level, gate, session & _U32, session >> 32]


def _xor(*words):
    return [int(np.bitwise_xor.reduce(parts)) for parts in zip(*words)]


def _children(seed, width, level, params, domain):
    out = block(seed, _domain(width, level, domain), params.rounds)
    seeds = [[out[4 * j] & _MASK, *out[4 * j + 1 : 4 * j + 4]] for j in range(2**width)]
    if width == 1:
        return seeds, [out[8] & 1, (out[8] >> 1) & 1]
    return seeds, [out[4 * j] & 1 for j in range(4)]


def _digits(value, params):
    bits = params.m
    for level, width in enumerate(params.widths):
        bits -= width
        yield level, width, (value >> bits) % 2**width


def _leaf(seed, params, domain):
    level = len(params.widths)
    return block(seed, _domain(3, level, domain), params.rounds)[: 2**params.nu // 32]


def _split(words, width):
    """Per child: seed correction and t correction, of a level's words."""
    groups = [words[4 * i : 4 * i + 4] for i in range(2**width - 1)]
    bits = [(groups[j // 2][0] >> (j % 2)) & 1 for j in range(2**width)]
    pure = [[group[0] & _MASK, *group[1:]] for group in groups]
    return (pure * 2 if width == 1 else [*pure, _xor(*pure)]), bits


def dpf_keygen(alpha, root0, root1, params, domain):
    """Correction words of one element: a list for the levels, a list for the leaf."""
    seeds = [[root[0] & _MASK, *root[1:]] for root in (root0, root1)]
    t, levels = [0, 1], []
    for level, width, a in _digits(alpha, params):
        (s0, t0), (s1, t1) = (_children(s, width, level, params, domain) for s in seeds)
        deltas = [_xor(x, y) for x, y in zip(s0, s1)]
        if width == 1:
            groups = [deltas[1 - a]]
        else:
            free = _xor(*(deltas[j] for j in range(4) if j != a))
            groups = [free if j == a else deltas[j] for j in range(3)]
        for j in range(2**width):
            groups[j // 2][0] |= (t0[j] ^ t1[j] ^ (j == a)) << (j % 2)
        words = [word for group in groups for word in group]
        fixes, bits = _split(words, width)
        for b, (s, tt) in enumerate(((s0, t0), (s1, t1))):
            seeds[b] = _xor(s[a], fixes[a]) if t[b] else s[a]
            t[b] = tt[a] ^ (t[b] & bits[a])
        levels += words
    assert t[0] ^ t[1] == 1
    low = alpha % 2**params.nu
    step = [sum(1 << i for i in range(32) if 32 * j + i >= low) for j in range(2**params.nu // 32)]
    leaf = [a ^ b ^ c for a, b, c in zip(*(_leaf(s, params, domain) for s in seeds), step)]
    return levels, leaf


def dpf_evaluate(party, root, levels, leaf, x, params, domain):
    """The party's share, 0 or 1."""
    seed, t, parity, row = [root[0] & _MASK, *root[1:]], party, 0, 0
    for level, width, digit in _digits(x, params):
        n_words = 4 * (2**width - 1)
        fixes, bit_fixes = _split(levels[row : row + n_words], width)
        seeds, bits = _children(seed, width, level, params, domain)
        bits = [bit ^ (t & fix) for bit, fix in zip(bits, bit_fixes)]
        seed = _xor(seeds[digit], fixes[digit]) if t else seeds[digit]
        parity ^= sum(bits[:digit]) % 2
        t, row = bits[digit], row + n_words
    out, low = _leaf(seed, params, domain), x % 2**params.nu
    word = out[low // 32] ^ (leaf[low // 32] if t else 0)
    return parity ^ ((word >> (low % 32)) & 1)


def _dcf_children(seed, level, params, domain):
    out = block(seed, _domain(4, level, domain), params.rounds)
    seeds = [[out[4 * j] & _MASK, *out[4 * j + 1 : 4 * j + 4]] for j in range(2)]
    values = [(out[low] | out[low + 1] << 32) % 2**params.word_bits for low in (10, 12)]
    return seeds, [out[8] & 1, (out[8] >> 1) & 1], values


def _dcf_end(seed, params, domain):
    out = block(seed, _domain(5, params.m, domain), params.rounds)
    return (out[0] | out[1] << 32) % 2**params.word_bits


def dcf_keygen(alpha, beta, root0, root1, params, domain):
    """Correction words of one element: a list for the levels, and one of ring elements."""
    seeds, t = [[root[0] & _MASK, *root[1:]] for root in (root0, root1)], [0, 1]
    levels, values, value, modulus = [], [], 0, 2**params.word_bits
    for level in range(params.m):
        a = (alpha >> (params.m - 1 - level)) & 1
        grown = [_dcf_children(seed, level, params, domain) for seed in seeds]
        fix = _xor(*(seeds_[1 - a] for seeds_, _, _ in grown))
        t_fix = [grown[0][1][j] ^ grown[1][1][j] ^ (j == a) for j in range(2)]
        sign = -1 if t[1] else 1
        lost = grown[1][2][1 - a] - grown[0][2][1 - a]
        v_fix = sign * (lost - value + (beta if a else 0)) % modulus
        value += grown[0][2][a] - grown[1][2][a] + sign * v_fix
        for b, (s, bits, _) in enumerate(grown):
            seeds[b] = _xor(s[a], fix) if t[b] else s[a]
            t[b] = bits[a] ^ (t[b] & t_fix[a])
        levels += [fix[0] | t_fix[0] | t_fix[1] << 1, *fix[1:]]
        values.append(v_fix)
    ends = [_dcf_end(seed, params, domain) for seed in seeds]
    return levels, [*values, (-1 if t[1] else 1) * (ends[1] - ends[0] - value) % modulus]


def dcf_evaluate(party, root, levels, values, x, params, domain):
    """The party's share, a ring element."""
    seed, t, total = [root[0] & _MASK, *root[1:]], party, 0
    for level in range(params.m):
        bit = (x >> (params.m - 1 - level)) & 1
        fix = levels[4 * level : 4 * level + 4]
        seeds, bits, grown = _dcf_children(seed, level, params, domain)
        total += grown[bit] + t * values[level]
        seed = _xor(seeds[bit], [fix[0] & _MASK, *fix[1:]]) if t else seeds[bit]
        t = bits[bit] ^ (t & (fix[0] >> bit))
    total += _dcf_end(seed, params, domain) + t * values[-1]
    return (-1 if party else 1) * total % 2**params.word_bits
