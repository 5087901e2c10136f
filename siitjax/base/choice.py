"""One wording for names that are not among those accepted."""

from collections.abc import Sequence
from difflib import get_close_matches

from siitjax.base.errors import UserError


def check_choice(what: str, name: str, accepted: Sequence[str], rule: str | None = None) -> None:
    """Raises UserError, with the nearest accepted name, where `name` is not one of `accepted`.

    Args:
        rule: says what is accepted where the names are too many to list.
    """
    if name not in accepted:
        near = get_close_matches(name, accepted, 1, cutoff=0.0)[0]
        rule = rule or f"It must be one of {', '.join(accepted)}"
        raise UserError(f'{what} is "{name}"; did you mean "{near}"? {rule}')
