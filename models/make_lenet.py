"""Train LeNet-5 on MNIST in plain NumPy and write `lenet.onnx` and `mnist_500.npz`.

    python models/make_lenet.py --data DIR        # DIR holds the four MNIST IDX files, gzip-compressed

The network is LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition", 1998) in its usual
modern form: ReLU instead of tanh, max instead of average pooling, full connection between S2 and C3, logits instead of
radial basis functions. Training takes a few minutes on one core; the seed is fixed, so runs on one machine and one
NumPy agree bit for bit (another BLAS rounds otherwise and lands a few digits away).
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

Params = dict[str, np.ndarray]
SAMPLE = 500  # the first 500 digits of the test set ship with the model


def read_idx(path: Path) -> np.ndarray:
    """An IDX file (the MNIST container: magic, big-endian dimensions, uint8 data) as an array."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def to_input(images: np.ndarray) -> np.ndarray:
    """uint8 [N,28,28] -> float32 [N,1,28,28] in 0..1, as the model wants it."""
    return images[:, None].astype(np.float32) / 255


def init_params(rng: np.random.Generator) -> Params:
    """He-normal weights, zero biases: 61,706 numbers."""
    shapes = {"conv1": (6, 1, 5, 5), "conv2": (16, 6, 5, 5), "fc1": (120, 400), "fc2": (84, 120), "fc3": (10, 84)}
    params: Params = {}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[1:]))
        params[f"{name}.weight"] = rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        params[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return params


def im2col(x: np.ndarray) -> np.ndarray:
    """[N,C,H,W] -> [N*(H-4)*(W-4), C*25]: every 5x5 window as a row."""
    windows = sliding_window_view(x, (5, 5), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(-1, x.shape[1] * 25)


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Valid 5x5 convolution; returns the output [N,O,H-4,W-4] and the columns, which the gradient needs again."""
    n, _, h, wd = x.shape
    cols = im2col(x)
    y = cols @ w.reshape(len(w), -1).T + b
    return y.reshape(n, h - 4, wd - 4, len(w)).transpose(0, 3, 1, 2), cols


def max_pool(x: np.ndarray) -> np.ndarray:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def max_pool_grad(x: np.ndarray, y: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """The gradient goes to the maximum of each 2x2 window (to each of them where several are equal)."""
    up = np.ones((1, 1, 1, 2, 1, 2), np.float32)
    mask = x.reshape(*y.shape[:3], 2, y.shape[3], 2) == y[:, :, :, None, :, None]
    return (mask * (dy[:, :, :, None, :, None] * up)).reshape(x.shape)


def forward(p: Params, x: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Logits [N,10] and the intermediate values that `backward` needs."""
    c1, cols1 = conv(np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))), p["conv1.weight"], p["conv1.bias"])
    r1 = np.maximum(c1, 0)
    s2 = max_pool(r1)
    c3, cols3 = conv(s2, p["conv2.weight"], p["conv2.bias"])
    r3 = np.maximum(c3, 0)
    s4 = max_pool(r3)
    flat = s4.reshape(len(x), -1)
    f5 = np.maximum(flat @ p["fc1.weight"].T + p["fc1.bias"], 0)
    f6 = np.maximum(f5 @ p["fc2.weight"].T + p["fc2.bias"], 0)
    return f6 @ p["fc3.weight"].T + p["fc3.bias"], (cols1, r1, s2, cols3, r3, s4, flat, f5, f6)


def backward(p: Params, saved: tuple, dy: np.ndarray) -> Params:
    """Gradients of the loss with respect to every parameter, given the one with respect to the logits."""
    cols1, r1, s2, cols3, r3, s4, flat, f5, f6 = saved
    g: Params = {}

    def linear(name: str, x: np.ndarray, d: np.ndarray) -> np.ndarray:
        g[f"{name}.weight"], g[f"{name}.bias"] = d.T @ x, d.sum(0)
        return d @ p[f"{name}.weight"]

    d = linear("fc3", f6, dy) * (f6 > 0)
    d = linear("fc2", f5, d) * (f5 > 0)
    d = linear("fc1", flat, d)
    d = max_pool_grad(r3, s4, d.reshape(s4.shape)) * (r3 > 0)
    n, _, h, w = d.shape
    rows = d.transpose(0, 2, 3, 1).reshape(-1, 16)
    g["conv2.weight"], g["conv2.bias"] = (rows.T @ cols3).reshape(p["conv2.weight"].shape), rows.sum(0)
    windows = (rows @ p["conv2.weight"].reshape(16, -1)).reshape(n, h, w, 6, 5, 5).transpose(0, 3, 4, 5, 1, 2)
    d = np.zeros_like(s2)
    for i in range(5):
        for j in range(5):
            d[:, :, i : i + h, j : j + w] += windows[:, :, i, j]
    d = max_pool_grad(r1, s2, d) * (r1 > 0)
    rows = d.transpose(0, 2, 3, 1).reshape(-1, 6)
    g["conv1.weight"], g["conv1.bias"] = (rows.T @ cols1).reshape(p["conv1.weight"].shape), rows.sum(0)
    return g


def softmax_grad(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gradient of the mean cross-entropy with respect to the logits."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    e /= e.sum(1, keepdims=True)
    e[np.arange(len(labels)), labels] -= 1
    return e / len(labels)


def accuracy(p: Params, images: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of digits whose largest logit is the right one."""
    hits = 0
    for i in range(0, len(images), 1000):
        hits += int((forward(p, to_input(images[i : i + 1000]))[0].argmax(1) == labels[i : i + 1000]).sum())
    return hits / len(images)


def train(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int = 5) -> Params:
    """AdamW with a one-cycle-like rate (linear warm-up, cosine decay), batches of 128, shifts of up to 2 pixels."""
    rng = np.random.default_rng(seed)
    p = init_params(rng)
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v = {k: np.zeros_like(w) for k, w in p.items()}
    batch, peak, decay = 128, 3e-3, 1e-4
    steps = epochs * (len(images) // batch)
    step, start = 0, time.perf_counter()
    for epoch in range(epochs):
        order = rng.permutation(len(images))
        for i in range(0, len(images) - batch + 1, batch):
            pick = order[i : i + batch]
            dy, dx = rng.integers(-2, 3, 2)
            x = to_input(np.roll(images[pick], (dy, dx), (1, 2)))  # the rim of a digit image is empty
            logits, saved = forward(p, x)
            grads = backward(p, saved, softmax_grad(logits, labels[pick]).astype(np.float32))
            step += 1
            rate = peak * min(step / 500, 0.5 * (1 + np.cos(np.pi * step / steps)))
            for k, g in grads.items():
                m[k] += 0.1 * (g - m[k])
                v[k] += 0.001 * (g * g - v[k])
                update = (m[k] / (1 - 0.9**step)) / (np.sqrt(v[k] / (1 - 0.999**step)) + 1e-8)
                p[k] -= np.float32(rate) * (update + (decay * p[k] if k.endswith("weight") else 0)).astype(np.float32)
        print(f"epoch {epoch + 1}/{epochs}: {time.perf_counter() - start:.0f} s", flush=True)
    return p


def to_onnx(p: Params, metadata: dict[str, str]) -> onnx.ModelProto:
    """The trained network as ONNX opset 17: input `image` [N,1,28,28], output `logits` [N,10]."""
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "conv1.weight", "conv1.bias"], ["c1"], "conv1", kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("MaxPool", ["r1"], ["s2"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["s2", "conv2.weight", "conv2.bias"], ["c3"], "conv2", kernel_shape=[5, 5]),
        node("Relu", ["c3"], ["r3"], "relu2"),
        node("MaxPool", ["r3"], ["s4"], "pool2", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["s4"], ["flat"], "flatten"),
        node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["f5"], "fc1", transB=1),
        node("Relu", ["f5"], ["r5"], "relu3"),
        node("Gemm", ["r5", "fc2.weight", "fc2.bias"], ["f6"], "fc2", transB=1),
        node("Relu", ["f6"], ["r6"], "relu4"),
        node("Gemm", ["r6", "fc3.weight", "fc3.bias"], ["logits"], "fc3", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "lenet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(w, name) for name, w in p.items()],
        doc_string="LeNet-5 for MNIST: digits 28x28, white on black, scaled to 0..1; logits of the classes 0..9",
    )
    model = helper.make_model(
        graph, producer_name="evort", producer_version="1", opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train-images-idx3-ubyte.gz and the rest")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    args = parser.parse_args()
    load = {
        k: read_idx(args.data / f"{k}-ubyte.gz")
        for k in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    }
    params = train(load["train-images-idx3"], load["train-labels-idx1"], args.epochs)
    images, labels = load["t10k-images-idx3"], load["t10k-labels-idx1"]
    full, part = accuracy(params, images, labels), accuracy(params, images[:SAMPLE], labels[:SAMPLE])
    print(f"accuracy: {full:.2%} of {len(images)} test digits, {part:.1%} of the first {SAMPLE}")
    metadata = {
        "task": "MNIST digit classification",
        "accuracy_mnist_test_10000": f"{full:.4f}",
        "accuracy_mnist_500": f"{part:.4f}",
        "input_scaling": "pixel / 255",
        "layout": "NCHW",
    }
    onnx.save(to_onnx(params, metadata), args.output / "lenet.onnx")
    np.savez_compressed(args.output / "mnist_500.npz", images=images[:SAMPLE], labels=labels[:SAMPLE])


if __name__ == "__main__":
    main()
