"""FastCUT: CUT made lighter, with a stronger contrastive loss and no identity term.

    min_{G,H} max_D  L_adv(D(G(x)), D(y)) + λ_NCE L_NCE(x, G(x)),    λ_NCE = 10

Instead of the identity term, mirrored maps are to be translated to mirrored maps: half of the batches are mirrored on
their way in and out.

References:
    Park, Efros, Zhang & Zhu 2020, Contrastive Learning for Unpaired Image-to-Image Translation, ECCV, arXiv:2007.15651.
"""

from typing import Any

from skyshift.translate.methods.cut import CUT


class FastCUT(CUT):
    """CUT with the published presets of FastCUT.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target; as many.
        nce_weight: λ_NCE.
        identity: Whether targets are translated as well, and compared with themselves.
        flip_equivariance: Whether half of the batches are mirrored on their way in and out.
        options: Of :class:`~skyshift.translate.methods.cut.CUT`.
    """

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        nce_weight: float = 10.0,
        identity: bool = False,
        flip_equivariance: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            source_channels,
            target_channels,
            nce_weight=nce_weight,
            identity=identity,
            flip_equivariance=flip_equivariance,
            **options,
        )
