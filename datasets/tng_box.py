"""All particles of a subbox, or of a snapshot without a catalogue.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.galaxy import Galaxy
from skyshift.datasets.smoothing import NEIGHBOURS, neighbour_distance
from skyshift.datasets.tng_files import (
    KINDS,
    Need,
    check_need,
    first_header,
    half_mass_radius,
    names_of,
    open_file,
    read_group,
    require_chunks,
    split_wind,
    systemic_velocity,
    unwrap,
)
from skyshift.datasets.tng_units import read_header, to_particles, wanted_fields


class Box:
    """All particles of a subbox, or of a snapshot without a catalogue, from the folder of its chunks.

    Args:
        folder: Holds ``*.0.hdf5``, ``*.1.hdf5``, …
        need: Kind to the fields that must be there; only these kinds and fields are read. By default everything.
        partial: Read what there is although chunks are missing; see :attr:`missing`.

    Attributes:
        header: Of the first chunk.
        missing: The chunks that are not there.
        particles: Kind to particles, positions in kpc in the box, with kernel supports that were searched for among
            all particles of the box where the files give none.
        replaced: Which fields are missing and what stands in for them, in words, or "".

    Raises:
        SnapshotError: No snapshot there, a chunk is missing (the message names it) or contradicts its header.
    """

    def __init__(self, folder: str | Path, *, need: Need | None = None, partial: bool = False) -> None:
        self.folder = Path(folder)
        self.header, chunks = first_header(self.folder)
        self.missing = require_chunks(self.folder, chunks, self.header.files, partial)
        asked = KINDS if need is None else tuple(dict.fromkeys("stars" if kind == "wind" else kind for kind in need))
        stored: dict[str, list[dict[str, NDArray[Any]]]] = {kind: [] for kind in asked}
        for path in chunks.values():
            with open_file(path) as file:
                header = read_header(file)
                for kind in asked:
                    wanted = wanted_fields(kind, names_of(need, kind))
                    part = read_group(file, kind, header, wanted, partial=False)
                    if part:
                        stored[kind].append(part)
        have = {kind: set.intersection(*(set(p) for p in parts)) for kind, parts in stored.items() if parts}
        self.replaced = check_need(have, need or {}, str(self.folder))
        kinds = {}
        for kind, names in have.items():
            arrays = {name: np.concatenate([part[name] for part in stored[kind]]) for name in names}
            kinds[kind] = to_particles(kind, arrays, self.header, names_of(need, kind))
        self.particles = {
            kind: p if p.support is not None else replace(p, support=neighbour_distance(p.position, NEIGHBOURS[kind]))
            for kind, p in split_wind(kinds, str(self.folder), needed=True).items()
        }
        self.number = int(match.group(1)) if (match := re.search(r"_(\d+)\.", chunks[min(chunks)].name)) else -1

    def region(self, centre: NDArray[np.floating], radius: float, number: int) -> Galaxy:
        """The particles within ``radius`` of ``centre``, and those whose kernel reaches in, as a galaxy.

        Args:
            centre: (3,) kpc in the box.
            radius: kpc.
            number: Given to the region.

        Returns:
            The galaxy; its velocity is the mean of its gas.
        """
        kinds = {}
        for kind, particles in self.particles.items():
            offset = unwrap(particles.position, centre, self.header.box_size)
            assert particles.support is not None
            reach = radius + particles.support
            inside = np.linalg.norm(offset, axis=1) <= reach
            kinds[kind] = replace(particles.select(inside), position=offset[inside])
        return Galaxy(
            name=f"region {number}",
            number=number,
            snapshot=self.number,
            redshift=self.header.redshift,
            hubble=self.header.hubble,
            omega_matter=self.header.omega_matter,
            centre=np.asarray(centre, np.float64),
            particles=kinds,
            velocity=systemic_velocity(kinds),
            half_mass_radius={kind: half_mass_radius(p) for kind, p in kinds.items()},
            provenance=f"sphere of {radius:.0f} kpc in {self.folder}" + (f"; {self.replaced}" if self.replaced else ""),
            replaced=self.replaced,
        )
