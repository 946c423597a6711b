"""Attribution patching and AtP*: first-order estimates of patching effects, checked exactly."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.attribution_patching.estimates import atp_star, attribution, verify
    from interp.attribution_patching.missed_effects import missed, sets, upper
    from interp.attribution_patching.verification import Agreement

__all__ = ["Agreement", "atp_star", "attribution", "missed", "sets", "upper", "verify"]

__getattr__ = names_on_first_use(__name__, __file__)
