"""The codec `mixed` of docs/format.md section 13 in plain Python and numpy: slow, and written from that section alone."""
import functools, math, struct
import numpy as np

RANK, F = 24, np.float32
SQUASH = [22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768, 40793, 47911, 53581,
          57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514]

def clamp(x, low, high):
    return max(low, min(x, high))

def between(table, x):
    at, part = divmod(x + 2048, 128)
    return table[at] + ((table[at + 1] - table[at]) * part >> 7)

@functools.cache
def stretches():
    out, x = [], -2047
    for p in range(4096):
        while x < 2047 and between(SQUASH, x) < 16 * p:
            x += 1
        out.append(x)
    return out

class Mixer:
    """Bits from their contexts."""
    def __init__(self, code):
        self.code, self.taken, self.low, self.high, self.at = code, 4, 0, (1 << 32) - 1, int.from_bytes(code[:4].ljust(4, b"\0"), "big")
        self.counters, self.weights, self.refined, self.stretch = {}, {}, {}, stretches()

    def raw(self, p):
        m = self.low + ((self.high - self.low) * p >> 16)
        bit = int(self.at <= m)
        self.low, self.high = (self.low, m) if bit else (m + 1, self.high)
        while (self.low ^ self.high) >> 24 == 0:
            byte = self.code[self.taken] if self.taken < len(self.code) else 0
            self.taken += 1
            self.low, self.high, self.at = (x << 8 & 0xFFFFFFFF | y for x, y in ((self.low, 0), (self.high, 255), (self.at, byte)))
        return bit

    def bit(self, values, node, selector):
        places = [(i, value, node) for i, value in enumerate(values)]
        counters = [self.counters.get(place, (1 << 21, 0)) for place in places]
        inputs = [self.stretch[p >> 10] for p, _ in counters] + [256, 0]
        sets = [self.weights.setdefault(key, [22938] * 6 + [0, 0]) for key in (("node", node), ("selector", selector))]
        xs = [clamp(sum(a * w >> 8 for a, w in zip(inputs, weights)) >> 8, -2047, 2047) for weights in sets]
        x, refined = sum(xs) >> 1, self.refined.setdefault(node, SQUASH[:])
        bit = self.raw(between(SQUASH, x) + between(refined, x) >> 1)
        goal, at = 65535 * bit, x + 2048 + 64 >> 7
        refined[at] = max(16, refined[at] + (goal - refined[at] >> 6))
        for x, weights in zip(xs, sets):
            error = goal - between(SQUASH, x)
            weights[:] = [clamp(w + (a * error + 8192 >> 14), -1 << 19, 1 << 19) for a, w in zip(inputs, weights)]
        goal = ((1 << 22) - 1) * bit
        for place, (p, n) in zip(places, counters):
            self.counters[place] = (p + ((goal - p) * (65536 // (n + 2)) >> 16), min(n + 1, 1000))
        return bit

    def tree(self, values, first, selector, bits):
        x = 1
        for i in range(bits):
            x = 2 * x + self.bit(values, first + x, selector + min(i, 2))
        return x - (1 << bits)

def dot(a, b):
    s = np.zeros(8, F)
    for part in (a * b).reshape(-1, 8):
        s += part
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))

def product(matrix, vector):
    out = np.zeros(RANK, F)
    for row, x in zip(matrix, vector):
        out += row * x
    return out

def downdate(matrix, a, y):
    matrix -= (a * y)[:, None] * a

def first_factors(column):
    mask = (1 << 64) - 1
    z = (column + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    z ^= z >> 31
    return np.array([0.125 if z >> i & 1 else -0.125 for i in range(RANK)], F)

class Steps:
    """What steps are foreseen to be."""
    def __init__(self, cols):
        self.v = [first_factors(j) for j in range(cols)]
        self.c, self.inverse, self.count = np.eye(RANK, dtype=F), np.eye(RANK, dtype=F), F(1)

    def start_row(self):
        self.p, self.u = self.c / self.count, np.zeros(RANK, F)
        self.p[np.diag_indices(RANK)] += F(0.01)

    def foresee(self, j):
        self.a = product(self.p, self.v[j])
        h, v = dot(self.v[j], self.u), dot(self.v[j], self.a)
        return (h if abs(h) <= 64 else F(0)), (v if v > 0 else F(0))

    def learn(self, error, noise, v):
        y = F(1) / (v + noise)
        self.u += self.a * (error * y)
        downdate(self.p, self.a, y)

    def end_row(self, steps):
        self.c = self.c * F(0.999) + self.u[:, None] * self.u
        self.count = self.count * F(0.999) + F(1)
        a = product(self.inverse, self.u)
        y = F(1) / (F(0.999) + dot(self.u, a))
        for v, step in zip(self.v, steps):
            if not np.isnan(step):
                v += a * ((step - dot(v, self.u)) * y)
        downdate(self.inverse, a, y)
        self.inverse *= F(1) / F(0.999)

def power(k):
    return math.ldexp(1.0, clamp(k, -1022, 1023))

def log2_mean(m):
    m = max(m, 1)
    top = m.bit_length() - 1
    return 4 * top - 64 + ((m << 2 >> top) & 3)

def log2_root(x):
    x = x if x > F(1e-24) else F(1e-24)
    return (int(np.array(x, F).view(np.uint32)) >> 22) - 254

class Chunk:
    def __init__(self, kind, unsigned, cols, track, shift, scale, highest, code):
        self.kind, self.unsigned, self.track, self.shift, self.scale, self.highest = kind, unsigned, track, shift, scale, highest
        self.mixer, self.steps = Mixer(code), Steps(cols) if track else None
        self.columns, self.row, self.all, self.a, self.r = [20000] * cols, 20000, 20000, F(1), F(1)
        self.top, self.mask, self.bias = 1 << kind.bits - 1, (1 << kind.bits) - 1, (1 << kind.exp - 1) - 1 if kind.exp else 0

    def exponent(self, x):
        return (x & self.top - 1) >> self.kind.man if self.kind.exp else 0

    def ulp(self, x):
        return max(self.exponent(x), 1) - self.bias - self.kind.man if self.kind.exp else 0

    def value(self, x):
        bits = (x >> self.kind.bits - 1) << 63 | (x & self.top - 1) << 52 - self.kind.man
        return struct.unpack("<d", struct.pack("<Q", bits))[0] * power(1023 - self.bias)

    def step(self, p, t):
        if self.kind.exp:
            return F((self.value(t) - self.value(p)) * power(-self.scale))
        d = t - p & self.mask
        return F(float(d - (self.mask + 1 if d & self.top else 0)) * power(-self.scale))

    def moved(self, p, h):
        s = float(h) * power(self.scale)
        if not self.kind.exp:
            i = int(s + (-0.5 if s < 0 else 0.5))
            return p + i & self.mask, s - i
        y, unused = self.value(p) + s, 52 - self.kind.man
        if not math.isfinite(y):
            return p, 0.0
        b = struct.unpack("<Q", struct.pack("<d", abs(y) * power(self.bias - 1023)))[0]
        q = min(b + ((1 << unused) >> 1) >> unused, ((1 << self.kind.exp) - 1 << self.kind.man) - 1)
        q |= self.top if math.copysign(1, y) < 0 else 0
        return q, (y - self.value(q)) * power(-self.ulp(q))

    def element(self, p, j):
        tells = self.exponent(p) <= self.highest
        h, v = self.steps.foresee(j) if self.track else (F(0), F(0))
        q, rest = self.moved(p, h) if self.shift and tells else (p, float(h) * power(self.scale - self.ulp(p)))
        k, sigma, c = 4 * (self.ulp(q) - self.scale), log2_root((v + self.a) * self.r), log2_mean(self.columns[j])
        place = c + log2_mean(self.row) - log2_mean(self.all)
        fine = lambda x: clamp(x - k + 48, 0, 127)
        coarse = lambda x: clamp((x - k >> 1) + 24, 0, 63)
        away = int(not self.unsigned and q & self.top != 0)
        eighth = 8 if math.isnan(rest) else math.floor(clamp(rest * 8, -8, 7)) + 8
        eighth = 15 - eighth if away else eighth
        m7 = lambda x: (x & (1 << self.kind.man) - 1) << 7 >> self.kind.man if self.kind.exp else x >> self.kind.bits - 7
        towards = 2 * clamp((log2_root(h * h) - sigma >> 1) + 12, 0, 15) + (int(h < 0) != away)
        e, level = self.exponent(p) & 31, coarse(sigma)
        shapes = [fine(sigma), fine(c), 2 * (16 * coarse(place) + eighth), 2 * (8 * level + (m7(q) >> 4)),
                  2 * (128 * e + m7(p)), 2 * (32 * level + towards)]
        details = [*shapes[:2], 2 * eighth, 2 * (m7(q) >> 4), 2 * e, 2 * towards]
        t = self.residual(q, shapes, details, 9 * coarse(place) if tells else 0)
        step = self.step(p, t)
        if not tells or np.isnan(step):
            return t, F(np.nan)
        step = F(clamp(step, F(-64), F(64)))
        error = step - h
        if self.track:
            self.steps.learn(error, self.a * self.r, v)
        square = error * error
        self.a += (square / self.r - self.a) * F(0.0005)
        relative = square / (self.a + v)
        self.r += ((relative if relative < 8 else F(8)) - self.r) * F(0.01)
        self.r = self.r if self.r > F(0.001) else F(0.001)
        size = int(abs(error) * F(65536))
        self.columns[j] += (size - self.columns[j]) * 328 >> 12
        self.row += (size - self.row) * 123 >> 12
        self.all += (size - self.all) * 2 >> 12
        return t, step

    def residual(self, q, shapes, details, selector):
        bits, exp, man, top = self.kind.bits, self.kind.exp, self.kind.man, self.top
        if not self.mixer.bit(shapes, 0, selector):
            return q
        negative = self.mixer.bit(shapes, 2, selector + 1)
        shapes, details = ([*values[:2], *(x + negative for x in values[2:])] for values in (shapes, details))
        is_large = self.mixer.bit(shapes, 1, selector + 2)
        group = self.mixer.tree(shapes, 32 if is_large else 8, selector + 3, 5 if is_large else 3)
        width = 7 if group == 31 else min(group, 3)
        detail = self.mixer.tree(details, 64 + 8 * group, selector + 6, width)
        jump = detail - 33 if group == 31 else -1
        flip, distance = divmod(jump, 40)
        if jump >= 80 or jump >= 0 and not exp or jump < 0 and (group + detail if group == 31 else group) >= bits:
            raise ValueError("a residual that its dtype does not have")
        raw_bits = (bits - 1 if distance in (0, 39) else man) if jump >= 0 else group + detail if group == 31 else group - width
        raw = sum(self.mixer.raw(32768) << i for i in range(raw_bits))
        if jump >= 0:
            sign = (q ^ flip << bits - 1) & top
            return sign | raw | (0 if distance in (0, 39) else (self.exponent(q) + distance - 12) % (1 << exp) << man)
        n = (1 << raw_bits if group == 31 else 1 << group | detail << raw_bits) | raw
        d = -n if negative else n
        if self.unsigned:
            return q + d & self.mask
        d = -d if q & top else d
        if not exp:
            return q + d & self.mask
        o = (q ^ (self.mask if q & top else top)) + d & self.mask
        return o ^ (top if o & top else self.mask)

def decode_mixed(kind, cols, p, payload):
    """The elements of a chunk, from the predictions and the bytes of its payload."""
    cols = len(p) if cols == 1 else cols
    flags, fields, at = payload[0], [], 1
    for _ in range(2):
        value = shift = 0
        while True:
            byte, at = payload[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        fields.append(value)
    scale = (fields[0] >> 1) ^ -(fields[0] & 1)
    if flags > 3 or abs(scale) > 1000 or fields[1] >> 32 or flags & 1 and len(p) // cols < 24:
        raise ValueError("the first fields of a mixed chunk are out of range")
    chunk = Chunk(kind, not kind.signed, cols, flags & 1, flags & 2, scale, fields[1], payload[at:])
    out = []
    with np.errstate(all="ignore"):
        for row in np.array(p, np.uint64).reshape(-1, cols).tolist():
            chunk.r = chunk.r * F(0.5) + F(0.5)
            chunk.row = chunk.row + chunk.all >> 1
            if chunk.track:
                chunk.steps.start_row()
            coded = [chunk.element(x, j) for j, x in enumerate(row)]
            out += [t for t, _ in coded]
            if chunk.track:
                chunk.steps.end_row([step for _, step in coded])
    if chunk.mixer.taken != len(chunk.mixer.code) + 3:
        raise ValueError("a mixed chunk does not end well")
    return np.array(out, np.uint64)
