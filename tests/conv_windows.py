"""Windows of convolutions for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def windows(draw: st.DrawFn, transposed: bool = False) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """Attributes, shape of X and shape of W of a small convolution."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    group, channels, maps = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    square = draw(st.booleans())
    kernel = [draw(st.sampled_from([1, 2, 3, 5]))] * rank if square else draw(st.tuples(*[st.integers(1, 6)] * rank))
    strides = draw(st.tuples(*[st.sampled_from([1, 1, 2, 3])] * rank))
    dilations = draw(st.tuples(*[st.sampled_from([1, 1, 1, 2])] * rank))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = draw(st.tuples(*[st.integers(0, 3)] * (2 * rank)))
    largest = 40 if rank < 3 else 9
    if transposed:
        image = draw(st.tuples(*[st.integers(1, largest // 2)] * rank))
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)]
        full = [(i - 1) * s + e + o for i, s, e, o in zip(image, strides, extent, extra, strict=True)]
        pads = [min(p, (f - 1) // 2) for p, f in zip(pads, full * 2, strict=True)]
        attrs = {"output_padding": extra}
        shape = (group * channels, maps, *kernel)
    else:
        least = [max(1, e - a - b) for e, a, b in zip(extent, pads[:rank], pads[rank:], strict=True)]
        image = [draw(st.integers(low, max(low, largest))) for low in least]
        attrs = {}
        shape = (group * maps, channels, *kernel)
    attrs |= {"group": group, "strides": list(strides), "dilations": list(dilations), "pads": list(pads)}
    return attrs, (draw(st.integers(1, 3)), group * channels, *image), shape
