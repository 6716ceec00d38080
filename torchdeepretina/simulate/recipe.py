"""What is asked for: sizes, seed and the streams of random numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

import numpy as np

from torchdeepretina.simulate import stimuli
from torchdeepretina.simulate.kernels import PARAMETERS
from torchdeepretina.simulate.retina import Retina, build_retina

GENERATOR_VERSION: Final = 1
DT_S: Final = PARAMETERS.dt_ms / 1000
BLOCK_GAP_S: Final = 60.0
# S.d. in bins of the smoothed responses.
SMOOTHING: Final = {
    "firing_rate_5ms": 0.5,
    "firing_rate_10ms": 1.0,
    "firing_rate_20ms": 2.0,
}
N_BOX_FRAMES: Final = 5_000
N_INTERNEURONS: Final = 3
INTERNEURON_SNR: Final = 4.0

Stim = Literal["naturalscene", "whitenoise"]
SizeName = Literal["tiny", "small", "full"]
Stream = Literal[
    "retina",
    "images",
    "train_stimulus",
    "test_stimulus",
    "train_spikes",
    "test_spikes",
    "boxes",
    "interneuron_noise",
]
# The position of a name is its j in SeedSequence([seed, j]): append only.
STREAMS: Final[tuple[Stream, ...]] = get_args(Stream)


@dataclass(frozen=True)
class Size:
    """How much is simulated; frames are 10 ms."""

    n_train_frames: int
    n_blocks: int
    n_test_frames: int
    height: int
    width: int
    n_cells: int
    n_repeats: int = 5

    def __post_init__(self) -> None:
        assert self.n_train_frames % self.n_blocks == 0
        assert self.n_cells >= N_INTERNEURONS

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.height, self.width

    @property
    def blocks(self) -> list[slice]:
        """Frames of each training block."""
        n = self.n_train_frames // self.n_blocks
        return [slice(n * i, n * (i + 1)) for i in range(self.n_blocks)]

    @property
    def boxes_shape(self) -> tuple[int, int]:
        """Box movies leave a rim of 12 % on each side, as 38 of 50 px do."""
        return self.height - 2 * self.boxes_rim, self.width - 2 * self.boxes_rim

    @property
    def boxes_rim(self) -> int:
        """Width of that rim, px."""
        return round(0.12 * min(self.shape))


SIZES: Final[dict[SizeName, Size]] = {
    "tiny": Size(2_000, 1, 600, 12, 12, 4),
    "small": Size(20_000, 2, 2_000, 20, 20, 6),
    "full": Size(360_000, 6, 6_000, 50, 50, 9),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that a file's content is a function of, besides versions."""

    size: Size
    seed: int
    ablate: tuple[str, ...] = ()

    def stream(self, name: Stream) -> np.random.Generator:
        """An independent stream of random numbers, afresh at each call."""
        entropy = [self.seed, STREAMS.index(name)]
        return np.random.default_rng(np.random.SeedSequence(entropy))

    def retina(self) -> Retina:
        """The cells, the same for every movie."""
        rng = self.stream("retina")
        return build_retina(self.size.shape, self.size.n_cells, rng, self.ablate)

    def record(self, kind: str) -> str:
        """All parameters of one file as JSON; equal text means equal content."""
        record = {
            "kind": kind,
            "generator_version": GENERATOR_VERSION,
            "seed": self.seed,
            "ablate": sorted(self.ablate),
            "size": asdict(self.size),
            "retina": asdict(PARAMETERS),
            "stimuli": stimuli.parameters(),
            "block_gap_s": BLOCK_GAP_S,
            "smoothing_bins": SMOOTHING,
            "n_box_frames": N_BOX_FRAMES,
            "interneuron_snr": INTERNEURON_SNR,
        }
        return json.dumps(record, sort_keys=True)


def cell_name(cell: int) -> str:
    """Name of a cell in a file, where cells count from 1."""
    return f"cell{cell + 1:02d}"
