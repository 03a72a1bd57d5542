"""Trunks by the name that `train.trunk` gives them."""

from __future__ import annotations

from collections.abc import Mapping

from dynamix.errors import ConfigError
from dynamix.models.trunks.base import Trunk, TrunkConfig
from dynamix.models.trunks.din import DinTrunk
from dynamix.models.trunks.dlrm import DlrmTrunk
from dynamix.models.trunks.hstu import HstuTrunk

TRUNKS: Mapping[str, type[Trunk]] = {"din": DinTrunk, "dlrm": DlrmTrunk, "hstu": HstuTrunk}


def build_trunk(config: TrunkConfig) -> Trunk:
    """The trunk of this kind and these sizes. ConfigError for a kind that this version does not have."""
    if config.kind not in TRUNKS:
        raise ConfigError(
            f"trunk {config.kind!r} is unknown; allowed: {', '.join(TRUNKS)}; a newer model needs its version"
        )
    return TRUNKS[config.kind](config)
