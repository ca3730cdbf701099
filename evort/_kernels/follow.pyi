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
    inputs: np.ndarray
    now: np.ndarray
    excess: float
    noise: float
    waits: bool
    def __init__(
        self,
        bounds: np.ndarray,
        inputs: list[int],
        attack: float,
        release: float,
        outlier: float,
        confirm: int,
        grow: float,
        shrink: float,
    ) -> None: ...
    def look(self, feeds: dict[str, np.ndarray], names: list[str]) -> bool: ...
    def observe(self, w: Watch, learn: bool) -> int: ...
