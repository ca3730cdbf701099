import numpy as np

class Watch:
    ranges: np.ndarray
    rows: np.ndarray
    inputs: list[int]
    noises: np.ndarray
    reach: np.ndarray
    units: np.ndarray
    def __init__(
        self,
        ranges: np.ndarray,
        rows: np.ndarray,
        inputs: list[int],
        noises: np.ndarray,
        reach: np.ndarray,
        units: np.ndarray,
    ) -> None: ...

class Follower:
    state: np.ndarray
    bounds: np.ndarray
    due: np.ndarray
    excess: float
    noise: float
    def __init__(
        self,
        bounds: np.ndarray,
        attack: float,
        release: float,
        outlier: float,
        confirm: int,
        grow: float,
        shrink: float,
    ) -> None: ...
    def observe(self, w: Watch, inputs: list[np.ndarray], learn: bool) -> int: ...
