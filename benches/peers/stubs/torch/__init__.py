"""Stands in for torch while zipnn is imported, and only then.

zipnn imports torch and safetensors.torch at the top of its modules, but compresses bytes without them: its work is in
zipnn_core, a C extension. torch is 5.6 GB, so this module has the names that those imports touch and nothing else.
Whatever would really need torch fails on them, which no measured call does.
"""


class dtype:  # noqa: N801, the name is torch's
    """A name that equals only itself."""


float = float32 = dtype()
float64, float16, half, bfloat16, float8_e4m3fn, float8_e5m2 = (dtype() for _ in range(6))
complex32, complex64, cfloat, complex128, cdouble = (dtype() for _ in range(5))
uint8, uint16, uint32, uint64, int8, int16, int32, int64, bool = (dtype() for _ in range(9))
quint8, qint8, qint32, quint4x2 = (dtype() for _ in range(4))


class Tensor:
    """Named in annotations."""


tensor = Tensor


class device:  # noqa: N801
    """Named in annotations."""


class nn:  # noqa: N801
    """Named in annotations."""

    class Module:
        """Named in annotations."""


class jit:  # noqa: N801
    """A decorator of two functions of zipnn's lossy mode, which is not measured."""

    @staticmethod
    def script(function):
        return function
