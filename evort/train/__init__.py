"""Training on evort's own graph and kernels. See docs/training.md.

    from evort import train

    model = train.layers.sequential(...)         # or evort_tools.convert.convert_model(...): any float model
    trainer = train.Trainer(model, train.CrossEntropy(), train.AdamW(1e-3))
    trainer.fit(train.Batches(x, y, batch_size=128), epochs=5)

The runtime never imports this package.
"""

from evort.train import layers, schedules
from evort.train.autodiff import differentiate, trace
from evort.train.data import Batches, mnist, read_idx, shifted_digits
from evort.train.history import History
from evort.train.losses import L1, MSE, CrossEntropy, Distillation, KLDivergence, Loss
from evort.train.optimizers import SGD, Adam, AdamW, Optimizer
from evort.train.trainer import EarlyStopping, Trainer, trainable

__all__ = [
    "L1", "MSE", "SGD", "Adam", "AdamW", "Batches", "CrossEntropy", "Distillation", "EarlyStopping", "History",
    "KLDivergence", "Loss", "Optimizer", "Trainer", "differentiate", "layers", "mnist", "read_idx", "schedules",
    "shifted_digits", "trace", "trainable",
]  # fmt: skip
