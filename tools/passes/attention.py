"""Makes one Attention of what exporters write out: product, scale, mask, Softmax, and product with the values."""

from __future__ import annotations

from evort.graph import Graph, Node
from evort.types import DType
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.patterns import product, unary

_HEADS_FIRST = [0, 2, 1, 3]  # of [batch, position, head, item], and back
_TURNED = [0, 2, 3, 1]


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    return sum(_fused(ed, node) for node in ed.nodes() if node.op == "MatMul")


class _Pattern:
    """Softmax(scale * Q K^T + mask) V of tensors of 4 axes, [B, H, S, E], or of 3 without heads."""

    def __init__(self, scale: float, q: str, turned: Node, v: str, mask: str):
        self.scale = scale
        self.q = q
        self.turned = turned  # the Transpose that gives K^T
        self.v = v
        self.mask = mask


def _fused(ed: Edit, node: Node) -> bool:
    """A query whose keys are all masked by -infinity gives zeros in place of NaN."""
    found = _pattern(ed, node)
    if found is None:
        return False
    names = [found.q, found.turned.outputs[0], found.v, *([found.mask] if found.mask else [])]
    sampled = ed.shapes.sampled_shapes(*names)
    shapes = [] if sampled is None else list(zip(*sampled, strict=True))
    if not shapes or not all(map(_fits, shapes)):
        return False
    attrs: dict[str, object] = {"scale": found.scale}
    perm = found.turned.attrs.get("perm")
    k = found.turned.inputs[0]
    if len(shapes[0][0]) == 3:
        if perm != [0, 2, 1]:
            return False
        ed.change(node, "Attention", [found.q, k, found.v, found.mask], {**attrs, "q_num_heads": 1, "kv_num_heads": 1})
        return True
    heads = {s[0][1] for s in shapes}
    last = _heads_last(ed, node)
    if perm == _TURNED and last is not None and len(heads) == 1:
        flat = [_flat(ed, found.q, _HEADS_FIRST), _flat(ed, found.turned.outputs[0], _TURNED),
                _flat(ed, found.v, _HEADS_FIRST)]  # fmt: skip
        if all(flat):
            count = heads.pop()
            attrs |= {"q_num_heads": count, "kv_num_heads": count}
            ed.change(last, "Attention", [*flat, found.mask], attrs)
            return True
    if perm == _TURNED:
        k = ed.insert(node, "Transpose", [k], {"perm": _HEADS_FIRST})
    elif perm != [0, 1, 3, 2]:
        return False
    ed.change(node, "Attention", [found.q, k, found.v, found.mask], attrs)
    return True


def _pattern(ed: Edit, node: Node) -> _Pattern | None:
    softmax = unary(ed, node.inputs[0], "Softmax")
    rank = ed.shapes.rank(node.outputs[0])
    if softmax is None or node.attrs or len(node.inputs) != 2 or rank not in (3, 4):
        return None
    if softmax.attrs.get("axis", -1) not in (-1, rank - 1) or ed.shapes.dtype(node.outputs[0]) != DType.FLOAT:
        return None
    scores = softmax.inputs[0]
    add = unary(ed, scores, "Add")
    pairs = [(scores, "")] if add is None else [(add.inputs[0], add.inputs[1]), (add.inputs[1], add.inputs[0])]
    for name, mask in pairs:
        scaled = product(ed, name)
        matmul = unary(ed, scaled.tensors[0], "MatMul") if len(scaled.tensors) == 1 else None
        if matmul is None or matmul.attrs or len(matmul.inputs) != 2:
            continue
        if mask and not (ed.shapes.same_shape(name, scores) and ed.shapes.dtype(mask) == DType.FLOAT):
            continue
        scale = scaled.factor
        sides = []
        for side in matmul.inputs:
            part = product(ed, side)
            whole = len(part.tensors) == 1 and part.factor > 0
            sides.append(part.tensors[0] if whole else side)
            scale *= part.factor if whole else 1.0
        turned = ed.producer(sides[1], "Transpose")
        if scale > 0 and turned is not None:
            return _Pattern(scale, sides[0], turned, node.inputs[1], mask)
    return None


def _fits(shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether nothing is broadcast but the mask, over batches, heads or queries."""
    q, k, v, *masks = shapes
    rank = len(q)
    if len(k) != rank or len(v) != rank or not q[:-2] == k[:-2] == v[:-2]:
        return False
    for mask in masks:
        whole = (*q[:-1], k[-1])
        if not 1 <= len(mask) <= rank or mask[-1] != k[-1]:
            return False
        if any(m not in (1, w) for m, w in zip(mask[-2::-1], whole[-2::-1], strict=False)):
            return False
        if rank == 3 and len(mask) == 3 and mask[0] != 1:  # Attention's has its heads there
            return False
    return True


def _flat(ed: Edit, name: str, perm: list[int]) -> str:
    """x [B, S, H * E] where `name` is that with its heads split and moved forward; "" where it is not."""
    turned = ed.producer(name, "Transpose")
    view = ed.producer(turned.inputs[0], "Reshape") if turned is not None and turned.attrs.get("perm") == perm else None
    if view is None:
        return ""
    shapes = ed.shapes.sampled_shapes(view.inputs[0], view.outputs[0])
    if shapes is None or any(x != (*y[:2], y[2] * y[3]) for x, y in zip(*shapes, strict=True)):
        return ""
    return view.inputs[0]


def _heads_last(ed: Edit, node: Node) -> Node | None:
    """The Reshape that makes [B, S, H * E] of a node's [B, H, S, E], where nothing else reads that."""
    turned = ed.only_user(node.outputs[0])
    if turned is None or turned.op != "Transpose" or turned.domain or turned.attrs.get("perm") != _HEADS_FIRST:
        return None
    view = ed.only_user(turned.outputs[0])
    if view is None or view.op != "Reshape" or view.domain or view.inputs[0] != turned.outputs[0]:
        return None
    shapes = ed.shapes.sampled_shapes(turned.outputs[0], view.outputs[0])
    if shapes is None or any(y != (*x[:2], x[2] * x[3]) for x, y in zip(*shapes, strict=True)):
        return None
    return view
