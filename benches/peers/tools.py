"""The rivals, one small class each: how it is called on bytes in memory, and on which cases.

A tool is set up once per case, for a dtype and with or without a base. Setting up imports its package, so a missing
package is an ImportError here and a loud line of the report, never a silent gap. What a call needs beyond the bytes
themselves (a mutable copy, an array over them) is made in `prepare`, which is not timed.
"""
import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

BF16, F32 = "BF16", "F32"
WIDTH = {BF16: 2, F32: 4}
PIECE = 1 << 20


class Tool:
    """A way to pack bytes, with or without a base, and to get them back."""

    name: ClassVar[str]
    package: ClassVar[str]
    alone: ClassVar[tuple[str, ...]] = ()  # the dtypes it packs without a base
    delta: ClassVar[tuple[str, ...]] = ()  # the dtypes it packs against a base
    call: ClassVar[str]  # what it is called with, for the report

    def __init__(self, dtype: str, base: bytes | None, size: int):
        # An import alone may succeed on a folder that an uninstalled package has left behind.
        importlib.metadata.version(self.package)
        self.dtype, self.width, self.base, self.size = dtype, WIDTH[dtype], base, size

    @classmethod
    def fits(cls, dtype: str, has_base: bool) -> bool:
        return dtype in (cls.delta if has_base else cls.alone)

    def prepare(self, data: bytes) -> Any:
        """What `encode` takes, made from the bytes; not timed."""
        return data

    def encode(self, source: Any) -> Any:
        raise NotImplementedError

    def decode(self, packed: Any) -> Any:
        """The bytes again, as anything that has them in order in its buffer."""
        raise NotImplementedError

    def packed_bytes(self, packed: Any) -> int:
        return len(packed)


class Memcpy(Tool):
    name = "memcpy"
    package = "numpy"
    alone = delta = (BF16, F32)
    call = "`numpy.copyto` of the original bytes into a buffer that was written before: the limit"

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        self.copy = np.ones(size, np.uint8)

    def prepare(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8)

    def encode(self, source: np.ndarray) -> np.ndarray:
        np.copyto(self.copy, source)
        return source

    def decode(self, packed: np.ndarray) -> np.ndarray:
        np.copyto(self.copy, packed)
        return self.copy


def import_zipnn():
    """zipnn, with stubs/torch in torch's place while it is imported; no other tool gets to see the stub."""
    if "zipnn" not in sys.modules:
        sys.path.insert(0, str(Path(__file__).with_name("stubs")))
        try:
            importlib.import_module("zipnn")
        finally:
            sys.path.pop(0)
            sys.modules.pop("torch", None)
    return sys.modules["zipnn"]


class ZipNN(Tool):
    name = package = "zipnn"
    alone = delta = (BF16, F32)
    call = (
        "`ZipNN(input_format='byte', bytearray_dtype='bfloat16' or 'float32', threads=1)`, `.compress(bytearray)`, "
        "`.decompress`; deltas with `delta_compressed_type='byte'`, `delta_second_data`; imported with a stub of torch"
    )

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        options = {"delta_compressed_type": "byte"} if base is not None else {}
        name = {BF16: "bfloat16", F32: "float32"}[dtype]
        self.zip = import_zipnn().ZipNN(input_format="byte", bytearray_dtype=name, threads=1, **options)
        self.second = {"delta_second_data": base} if base is not None else {}

    def prepare(self, data: bytes) -> bytearray:
        return bytearray(data)  # compress() changes the bytes that it is given

    def encode(self, source: bytearray) -> bytes:
        return self.zip.compress(source, **self.second)

    def decode(self, packed: bytes) -> bytes:
        return self.zip.decompress(packed, **self.second)


class Lmz(Tool):
    name = "lmz"
    package = "lmzip"
    alone = delta = (BF16, F32)
    call = (
        "`lmz.codec.encode_chunk`, `decode_chunk`, `encode_delta`, `decode_delta` on chunks of 8 MiB, level 1, with "
        "CRC-32, as `lmz.compress` calls them by default"
    )

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        from lmz import api, codec, planner

        self.codec = codec
        self.kind = planner.KIND_BF16 if dtype == BF16 else planner.KIND_BYTES
        self.level = api.DEFAULT_LEVEL
        self.spans = [(at, min(at + api.DEFAULT_CHUNK_SIZE, size)) for at in range(0, size, api.DEFAULT_CHUNK_SIZE)]
        self.out = np.ones(size, np.uint8)

    def encode(self, source: bytes) -> list[tuple]:
        data, packed = memoryview(source), []
        base = memoryview(self.base) if self.base is not None else None
        for start, end in self.spans:
            piece = data[start:end]
            if base is None:
                parts, codec, flags, crc = self.codec.encode_chunk(piece, self.width, self.level, True, kind=self.kind)
            else:
                parts, flags, crc = self.codec.encode_delta(
                    piece, base[start:end], self.width, self.level, True, kind=self.kind
                )
                codec = None
            packed.append((b"".join(parts), codec, flags, crc))
        return packed

    def decode(self, packed: list[tuple]) -> np.ndarray:
        base = memoryview(self.base) if self.base is not None else None
        for (start, end), (payload, codec, flags, crc) in zip(self.spans, packed, strict=True):
            if base is None:
                piece = self.codec.decode_chunk(payload, codec, self.width, flags, end - start, crc)
            else:
                piece = self.codec.decode_delta(payload, self.width, flags, end - start, base[start:end], crc)
            self.out[start:end] = np.frombuffer(piece, np.uint8)
        return self.out

    def packed_bytes(self, packed: list[tuple]) -> int:
        return sum(len(payload) for payload, *_ in packed)


class Z4ai(Tool):
    name = package = "z4ai"
    alone = delta = (BF16, F32)
    call = "`compress(data, dtype='bf16' or 'fp32', threads=1)`, `decompress`; `compress_delta`, `decompress_delta`"

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        import z4ai

        self.z4ai, self.code = z4ai, {BF16: "bf16", F32: "fp32"}[dtype]

    def encode(self, source: bytes) -> bytes:
        if self.base is None:
            return self.z4ai.compress(source, dtype=self.code, threads=1)
        return self.z4ai.compress_delta(source, self.base, dtype=self.code, threads=1)

    def decode(self, packed: bytes) -> bytes:
        return self.z4ai.decompress(packed) if self.base is None else self.z4ai.decompress_delta(packed, self.base)


def flip_negatives(signed: np.ndarray) -> np.ndarray:
    """Floats' bits as integers in the floats' order, and back: it is its own inverse. Changes `signed` in place."""
    mask = signed >> (8 * signed.itemsize - 1)
    mask &= np.iinfo(signed.dtype).max
    signed ^= mask
    return signed


class Pcodec(Tool):
    name = package = "pcodec"
    alone = delta = (BF16, F32)
    call = (
        "`standalone.simple_compress(array, ChunkConfig(compression_level=8))`, `simple_decompress_into`, on uint16 "
        "for BF16 and on float32; deltas are differences of ordered integers (ULPs), computed with numpy in 1 MiB "
        "pieces and timed with it"
    )

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        import pcodec

        self.pcodec = pcodec.standalone
        self.config = pcodec.ChunkConfig(compression_level=8)
        self.signed = {BF16: np.int16, F32: np.int32}[dtype]
        element = self.signed if base is not None else {BF16: np.uint16, F32: np.float32}[dtype]
        self.out = np.ones(size // self.width, element)
        step = PIECE // self.width
        self.spans = [slice(at, at + step) for at in range(0, len(self.out), step)]
        self.base_array = np.frombuffer(base, self.signed) if base is not None else None

    def prepare(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, self.out.dtype)

    def encode(self, source: np.ndarray) -> bytes:
        if self.base_array is not None:
            residual = np.empty_like(source)
            for span in self.spans:
                predicted = flip_negatives(self.base_array[span].copy())
                np.subtract(flip_negatives(source[span].copy()), predicted, out=residual[span])
            source = residual
        return self.pcodec.simple_compress(source, self.config)

    def decode(self, packed: bytes) -> np.ndarray:
        self.pcodec.simple_decompress_into(packed, self.out)
        if self.base_array is not None:
            for span in self.spans:
                self.out[span] += flip_negatives(self.base_array[span].copy())
                flip_negatives(self.out[span])
        return self.out


class OpenZL(Tool):
    name = package = "openzl"
    alone = (BF16, F32)
    call = (
        "graph `ConvertSerialToNumLE16 -> BFloat16Deconstruct -> Entropy` (for FP32 the same with `LE32` and "
        "`Float32Deconstruct`, its 24-bit field through `TransposeSplit`), `FormatVersion = MAX_FORMAT_VERSION`"
    )

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        from openzl import ext as zl

        self.zl, self.compressor = zl, zl.Compressor()
        entropy = zl.graphs.Entropy()
        if dtype == BF16:
            to_numbers = zl.nodes.ConvertSerialToNumLE16()
            split = zl.nodes.BFloat16Deconstruct()(self.compressor, entropy, entropy)
        else:
            to_numbers = zl.nodes.ConvertSerialToNumLE32()
            planes = zl.nodes.TransposeSplit()(self.compressor, entropy)
            split = zl.nodes.Float32Deconstruct()(self.compressor, planes, entropy)
        self.compressor.select_starting_graph(to_numbers(self.compressor, split))

    def prepare(self, data: bytes) -> Any:
        return self.zl.Input(self.zl.Type.Serial, np.frombuffer(data, np.uint8))

    def encode(self, source: Any) -> bytes:
        context = self.zl.CCtx()
        context.ref_compressor(self.compressor)
        context.set_parameter(self.zl.CParam.FormatVersion, self.zl.MAX_FORMAT_VERSION)
        return context.compress([source])

    def decode(self, packed: bytes) -> np.ndarray:
        return self.zl.DCtx().decompress(packed)[0].content.as_nparray()


class Blosc2(Tool):
    name = package = "blosc2"
    alone = (BF16, F32)
    call = "`compress2`, `decompress2`, `CParams(codec=ZSTD, clevel=1, typesize=2 or 4, filters=[SHUFFLE], nthreads=1)`"

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        import blosc2

        self.blosc2 = blosc2
        self.cparams = blosc2.CParams(
            codec=blosc2.Codec.ZSTD, clevel=1, typesize=self.width, filters=[blosc2.Filter.SHUFFLE], nthreads=1
        )
        self.dparams = blosc2.DParams(nthreads=1)
        self.out = bytearray(b"\1" * size)

    def encode(self, source: bytes) -> bytes:
        return self.blosc2.compress2(source, cparams=self.cparams)

    def decode(self, packed: bytes) -> bytearray:
        self.blosc2.decompress2(packed, dst=self.out, dparams=self.dparams)
        return self.out


class Zstd(Tool):
    name = "zstd -3"
    package = "zstandard"
    alone = (BF16, F32)
    call = "`ZstdCompressor(level=3).compress` on the bytes as they are"

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        import zstandard

        self.compressor, self.decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()

    def encode(self, source: bytes) -> bytes:
        return self.compressor.compress(source)

    def decode(self, packed: bytes) -> bytes:
        return self.decompressor.decompress(packed)


class XorZstd(Tool):
    name = "XOR + zstd -1"
    package = "zstandard"
    delta = (BF16, F32)
    call = "`numpy.bitwise_xor` with the base and `ZstdCompressor(level=1)`: the encoding of slime's weight sync"

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        import zstandard

        self.compressor, self.decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
        self.words = np.frombuffer(base, np.uint8)
        self.out = np.ones(size, np.uint8)

    def prepare(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8)

    def encode(self, source: np.ndarray) -> bytes:
        np.bitwise_xor(source, self.words, out=self.out)
        return self.compressor.compress(self.out)

    def decode(self, packed: bytes) -> np.ndarray:
        difference = np.frombuffer(self.decompressor.decompress(packed), np.uint8)
        return np.bitwise_xor(difference, self.words, out=self.out)


class BitX(Tool):
    name = "BitX"
    package = "zstandard"
    delta = (BF16,)
    call = (
        "ZipLLM's transform, written here with numpy as there is no package of it: XOR with the base, exponents and "
        "sign-with-mantissa bytes apart, each with zstd -3, in 1 MiB pieces"
    )

    def __init__(self, dtype: str, base: bytes | None, size: int):
        super().__init__(dtype, base, size)
        import zstandard

        self.compressor, self.decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
        self.words = np.frombuffer(base, np.uint16)
        self.out = np.ones(size // 2, np.uint16)
        step = PIECE // 2
        self.spans = [slice(at, at + step) for at in range(0, size // 2, step)]

    def prepare(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint16)

    def encode(self, source: np.ndarray) -> list[bytes]:
        packed = []
        for span in self.spans:
            xor = source[span] ^ self.words[span]
            exponents = (xor >> 7).astype(np.uint8)
            rest = ((xor >> 8) & 0x80 | xor & 0x7F).astype(np.uint8)
            packed += [self.compressor.compress(exponents), self.compressor.compress(rest)]
        return packed

    def decode(self, packed: list[bytes]) -> np.ndarray:
        for span, exponents, rest in zip(self.spans, packed[::2], packed[1::2], strict=True):
            high = np.frombuffer(self.decompressor.decompress(exponents), np.uint8).astype(np.uint16)
            low = np.frombuffer(self.decompressor.decompress(rest), np.uint8).astype(np.uint16)
            high <<= 7
            high |= low & 0x7F
            low &= 0x80
            low <<= 8
            high |= low
            np.bitwise_xor(high, self.words[span], out=self.out[span])
        return self.out

    def packed_bytes(self, packed: list[bytes]) -> int:
        return sum(map(len, packed))


RIVALS: tuple[type[Tool], ...] = (ZipNN, Lmz, Z4ai, Pcodec, OpenZL, Blosc2, Zstd, XorZstd, BitX)
