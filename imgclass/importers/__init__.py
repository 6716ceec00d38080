"""Bring public image sets into the one file that training reads, `images.h5`.

Each kind has a file with a function `read_<kind>(path, ...)` that gives an `ImageSet`:
images (N, C, H, W), labels and names, in arrays or, for folders, read as they are
asked for. `files` is the only place that checks and writes; `command` is
`gridrun data import`. Nothing here loads torch until `write_images` is called.

The layout of the file:

    /train/images, /test/images   uint8 (N, C, H, W), grey or colour levels 0-255
    /train/labels, /test/labels   integer (N,), 0 ... K-1
    /class_names                  UTF-8 (K,)
    /train/paths, /test/paths     UTF-8 (N,), relative; folders only
    /train/coarse_labels, ...     integer (N,), with /coarse_class_names; cifar100 only
    attributes                    source, licence, citation; augment (JSON list);
                                  skipped (JSON object: path to reason; folders only)
"""

from imgclass.importers.cifar import read_cifar
from imgclass.importers.command import add_arguments, main
from imgclass.importers.digits import import_digits, read_digits
from imgclass.importers.files import save, write_images
from imgclass.importers.folder import read_folder
from imgclass.importers.idx import read_idx
from imgclass.importers.image_set import (
    ImageSet,
    count_shared_images,
    image_problems,
    split_stratified,
)
from imgclass.importers.npz import read_npz

__all__ = [
    "ImageSet",
    "add_arguments",
    "count_shared_images",
    "image_problems",
    "import_digits",
    "main",
    "read_cifar",
    "read_digits",
    "read_folder",
    "read_idx",
    "read_npz",
    "save",
    "split_stratified",
    "write_images",
]
