"""What of the target is of no class of the source: a ranked table, a contact sheet, and how the unknown fall together.

``anomalies.csv`` ranks the target's test maps by the method's own score, beside entropy, energy and the distance to the
known classes. ``anomalies.png`` shows the first of them. ``unknown_clusters.json`` holds the number of clusters that
the maps above the threshold form, estimated from their features.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyshift.adapt.report_scores import Part, Setting
from skyshift.adapt.sides import Side
from skyshift.adapt.task import Task
from skyshift.adapt.unknowns import KnownClusters, anomaly_scores, cluster_unknowns, contact_sheet, rank_anomalies
from skyshift.datasets.domains import DOMAINS
from skyshift.files import write_json, write_whole
from skyshift.translate.translator import store_maps

SHOWN = 24
"""Maps on the contact sheet, at the most."""

FEWEST = 3
"""Maps above the threshold from which clusters are looked for."""


def report_unknowns(
    folder: Path, task: Task, side: Side, views: NDArray[np.int64], target: Part, validation: Part
) -> None:
    """Write the table, the contact sheet and the clusters.

    Args:
        folder: Where; it is there.
        task: Of classes.
        side: The target.
        views: Of the maps of ``target``.
        target: What the classifier says of the target's test maps.
        validation: Of the source's validation maps, with their labels.
    """
    known = np.asarray(validation.labels) >= 0
    clusters = KnownClusters.fit(
        validation.features[known], np.asarray(validation.labels)[known], classes=len(task.source)
    )
    scores = {"unknown": np.asarray(target.unknown, np.float64)}
    scores |= anomaly_scores(target.logits, target.features, clusters)
    threshold = Setting.fitted(validation, task, None).threshold
    above = np.flatnonzero(scores["unknown"] > threshold)
    cluster = np.full(len(target), -1)
    facts: dict[str, object] = {"threshold": threshold, "above_threshold": len(above), "clusters": 0}
    if len(above) >= FEWEST:
        found = cluster_unknowns(target.features[above])
        cluster[above] = found.labels
        facts |= {"clusters": found.count, "silhouettes": {str(k): v for k, v in found.silhouettes.items()}}
    classes = np.array(task.source)[target.logits.argmax(1)]
    columns = {"predicted": classes, "above_threshold": scores["unknown"] > threshold, "cluster": cluster}
    table = rank_anomalies(list(target.names), views, scores, by="unknown", columns=columns)
    table.write(folder / "anomalies.csv")
    write_json(folder / "unknown_clusters.json", facts)
    domain = side.domains[0]
    first = store_maps(side.store, [domain], table.views[:SHOWN])[domain]
    known_domain = DOMAINS.get(domain)
    figure = contact_sheet(
        first,
        table,
        colour_map=known_domain.colour_map if known_domain else "viridis",
        signed=bool((first.values < 0).any()),
    )
    with write_whole(folder / "anomalies.png") as path:
        figure.savefig(path, dpi=110)
