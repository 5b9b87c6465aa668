"""What is odd in volumes that can be used: one warning for each kind, with a count."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

log = logging.getLogger(__name__)

NoteKind = Literal[
    "no_header",
    "unclear_header",
    "unclear_attribute",
    "other_matrix",
    "swapped_coils",
    "off_centre",
    "even_axis",
    "unused_mask",
    "undeclared_mask",
    "few_centre_lines",
    "wrong_max",
    "larger_target",
    "turned_target",
    "shifted_target",
    "other_target",
    "aliased_target",
    "other_unit",
    "other_unit_undersampled",
]
Note = tuple[NoteKind, str]  # its kind, and what was found in the file

# Each continues "in 3 of 12 volumes ".
TEXTS: dict[NoteKind, str] = {
    "no_header": "there is no ISMRMRD header: scanner and field strength count as unknown",
    "unclear_header": "the ISMRMRD header is unclear: what cannot be read counts as not given",
    "unclear_attribute": "an attribute is not what its name says: it counts as not given",
    "other_matrix": "the header describes another matrix than that of k-space: the acquired "
    "columns that it gives are not used",
    "swapped_coils": "the axes may be in another order: expected [slice, coil, H, W]",
    "off_centre": "the strongest column of k-space is far from the middle: the centre lines of "
    "masks may miss the zero frequency",
    "even_axis": "energy is spread evenly along one axis of k-space: it may be radial, or already "
    "transformed along this axis",
    "unused_mask": "k-space holds data in columns that the stored mask leaves out: the mask is not "
    "used, the data are",
    "undeclared_mask": "columns of k-space are zero that no stored mask leaves out: they count as "
    "not measured, the volumes as undersampled by the scanner",
    "few_centre_lines": "the scanner measured few lines at the centre of k-space: sensitivity maps "
    "will be poor",
    "wrong_max": "the attribute max is not the largest value of the target, which is used instead",
    "larger_target": "the target is larger than k-space: images are compared on the smaller size",
    "turned_target": "the target is turned against the image of its k-space: a network cannot "
    "learn this, turn the target back",
    "shifted_target": "the target is shifted against the image of its k-space",
    "other_target": "the target differs from the image of its k-space: it may be filtered, or "
    "belong to another slice",
    "aliased_target": "k-space was undersampled, and the target is its image: it has the artefacts "
    "that a network is to remove",
    "other_unit": "the target is in another unit than k-space, which is multiplied by the factor "
    "between them; volumes without targets are left as they are: scale them by the same factor",
    "other_unit_undersampled": "the target is in another unit than k-space, by a factor that "
    "undersampled k-space does not give: the loss compares images in different units",
}


class HasNotes(Protocol):
    """What `warn_of_notes` needs of a volume."""

    @property
    def name(self) -> str:
        """File name."""

    @property
    def notes(self) -> tuple[Note, ...]:
        """What is odd in it."""


def warn_of_notes(volumes: Sequence[HasNotes], where: str) -> None:
    """Log a warning for each kind of note: in how many volumes, and the first of them."""
    found: dict[NoteKind, list[str]] = defaultdict(list)
    for volume in volumes:
        for kind, detail in unique(volume.notes):
            found[kind].append(f"{volume.name}: {detail}")
    for kind, examples in found.items():
        log.warning(
            "%s: in %d of %d volumes %s (%s%s)",
            where,
            len(examples),
            len(volumes),
            TEXTS[kind],
            examples[0],
            ", ..." if len(examples) > 1 else "",
        )


def unique(notes: Iterable[Note]) -> list[Note]:
    """The notes, of each kind the first."""
    return list({kind: (kind, detail) for kind, detail in reversed(list(notes))}.values())[::-1]
