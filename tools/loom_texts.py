"""Texts of JSON in another layout; written from section 3.11 of docs/format.md."""
import re

TOKEN = re.compile(rb'[{}\[\],:]|"(?:\\.|[^"\\])*(?:"|\\?\Z)|[^ \t\n\r{}\[\],:"]+', re.S)
PIECE = re.compile(r'\\u[0-9a-fA-F]{4}|\\.?|[^\\]', re.S)
SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
CODES = {"b": 8, "t": 9, "n": 10, "f": 12, "r": 13, '"': 34, "\\": 92, "/": 47}

def is_layout(flags, indent, levels, length):
    return flags >> 3 <= 2 and indent <= 17 and levels <= 1 << 16 and 1 <= length <= 1 << 26

def characters(inner):
    """Codes of characters and of halves of pairs; other bytes and escapes as they are."""
    units = []
    for piece in PIECE.findall(inner.decode("utf-8", "surrogateescape")):
        if len(piece) == 6 and piece[0] == "\\":
            code = int(piece[2:], 16)
            if units and isinstance(units[-1], tuple) and units[-1][0] >> 10 == 0x36 and code >> 10 == 0x37:
                code += 0x10000 - 0xDC00 + (units.pop()[0] - 0xD800 << 10)
            units.append((code,))
        elif piece[0] == "\\" and piece[1:] in CODES:
            units.append((CODES[piece[1:]],))
        elif piece[0] == "\\" or 0xDC80 <= ord(piece) < 0xDD00:
            units.append(piece.encode("utf-8", "surrogateescape"))
        else:
            units.append(ord(piece))
    return [unit[0] if isinstance(unit, tuple) else unit for unit in units]

def string(token, ascii):
    closed = len(token) > 1 and re.fullmatch(rb'"(?:\\.|[^"\\])*"', token, re.S)
    out = b'"'
    for unit in characters(token[1:-1] if closed else token[1:]):
        if isinstance(unit, bytes):
            out += unit
        elif unit in SHORT:
            out += b"\\" + SHORT[unit].encode()
        elif unit < 32 or 0xD800 <= unit < 0xE000 or ascii and unit > 126:
            halves = [unit] if unit < 0x10000 else [0xD800 + (unit - 0x10000 >> 10), 0xDC00 + (unit & 0x3FF)]
            out += "".join(f"\\u{half:04x}" for half in halves).encode()
        else:
            out += chr(unit).encode()
    return out + (b'"' if closed else b"")

def laid_out(text, flags, indent, levels, length):
    line = lambda depth: (b"\r\n" if flags & 4 else b"\n") + (b"\t" * depth if indent == 17 else b" " * indent * depth)
    broken = lambda depth: min(depth, 65535) < levels
    out, depth, before = [], 0, b""
    for token in TOKEN.findall(text):
        is_open, is_close = token in b"{[", token in b"}]"
        if is_close:
            depth = max(depth - 1, 0)
            if before not in (b"{", b"[") and broken(depth):
                out.append(line(depth))
        elif before in (b"{", b"[") and broken(depth - 1):
            out.append(line(depth))
        elif not depth and before not in (b"", b"{", b"[", b",", b":") and token not in (b",", b":"):
            out.append(line(0))
        out.append(string(token, flags >> 3 == 2) if token[:1] == b'"' and flags >> 3 else token)
        depth += is_open
        if token == b",":
            out.append(line(depth) if depth and broken(depth - 1) else b" " if flags & 2 else b"")
        elif token == b":" and flags & 1:
            out.append(b" ")
        before = token
    out = b"".join(out)
    if len(out) != length:
        raise ValueError("a text of another length")
    return out
