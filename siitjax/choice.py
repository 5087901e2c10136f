"""One wording for names that are not among those accepted."""

from collections.abc import Sequence
from difflib import get_close_matches

from siitjax.errors import UserError


def check_choice(what: str, name: str, accepted: Sequence[str]) -> None:
    """Raises UserError, with the nearest accepted name, where `name` is not one of `accepted`."""
    if name not in accepted:
        near = get_close_matches(name, accepted, 1, cutoff=0.0)[0]
        raise UserError(f'{what} is "{name}"; did you mean "{near}"? It must be one of {", ".join(accepted)}')
