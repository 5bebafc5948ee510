"""The statistics of a dataset, and its dialogs that stand out."""

from pydantic import Field

from dialogkit.config.base import Result


class SetFigures(Result):
    """Statistics of the dialogs to train on, or of those held out, after they are cut."""

    dialogs: int
    tokens: int
    supervised_tokens: int
    """Tokens of the answers, each with its end of turn: those that a model learns to predict."""


class LengthBin(Result):
    """Number of dialogs of `low` to `high` tokens, inclusive, before they are cut."""

    low: int
    high: int
    dialogs: int
    cut: bool


class Lengths(Result):
    """Lengths of the dialogs in tokens, before they are cut."""

    median: float
    percentile_95: float
    percentile_99: float
    longest: int
    histogram: list[LengthBin]


class Copies(Result):
    """Exact and near duplicates."""

    exact: int
    """Dialogs equal to an earlier one."""
    near: int
    """Distinct dialogs with at least one near duplicate."""
    near_groups: int
    """Groups of near duplicates; keeping one of each removes `near - near_groups` dialogs."""
    threshold: float
    """Minimum Jaccard similarity of near duplicates."""
    shingle_words: int
    """Consecutive words in each shingle that is compared."""


class Overlap(Result):
    """Held-out dialogs that share something with a dialog to train on."""

    prompt: int
    """Those with the same prompt, which is everything before the first answer."""
    answer: int
    """Those with the same first answer."""
    near: int
    """Those that are near duplicates."""
    template: int
    """Those with a new prompt that differs from a known one only in names and numbers."""


class CheckedAnswers(Result):
    """Answers whose rows say what a right answer contains."""

    answers: int
    """Answers with a check."""
    tried: int = 0
    """Those whose checks were tried: all, or some throughout the dataset."""
    echoed: int = 0
    """Of these, those whose question passes the check already: a reply that only repeats it counts as right."""
    failed: int = 0
    """Of these, those that do not pass their own check."""
    failed_places: list[str] = Field(default_factory=list)
    """Places of the first of them."""


class Example(Result):
    """A dialog that stands out, and the value by which it does."""

    value: float
    place: str
    """`file:line`, or `file[number]`."""
    beginning: str


class NearPair(Result):
    """A pair of near duplicates."""

    similarity: float
    places: tuple[str, str]
    beginnings: tuple[str, str]


class Token(Result):
    """A token of a dialog, as it is trained."""

    id: int
    text: str
    special: bool
    supervised: bool


class ShownDialog(Result):
    """A dialog, token by token."""

    place: str
    tokens: list[Token]


class InspectResult(Result):
    """What a model sees of a dataset."""

    dataset: str
    format: str
    license: str | None
    revision: str
    """SHA-256 of the file, or the hub dataset's fingerprint."""
    model: str
    context: int
    """Context length of the model, in tokens."""
    limit: int
    """Maximum length of a dialog in tokens: the context, or `data.max_tokens` if that is less."""
    rows: int
    kept: int
    cut: int
    dropped: int
    """Dialogs without a supervised token within the limit."""
    unusable: int
    """Rows without a dialog in the format."""
    unusable_rows: list[str]
    """The first of these rows, each with its place and the reason."""
    notes: list[str]
    """What was repaired, left out or not used of the rows."""
    train: SetFigures
    held_out: SetFigures
    split_by: str
    """How the dialogs are split: by a `hash` of their text, or as their `rows` say."""
    checked: CheckedAnswers
    supervised_share: float
    """Supervised fraction of the tokens of both sets."""
    cut_share: float
    """Fraction of the dialogs of both sets that is cut."""
    turns: dict[int, int]
    """Number of dialogs by their number of messages, without system messages."""
    system_prompts: int
    """Dialogs that begin with a system message."""
    scripts: dict[str, float]
    """Fraction of the letters in each script."""
    bytes_per_token: float
    """UTF-8 bytes of the messages per token, without special tokens."""
    lengths: Lengths
    copies: Copies
    most_copied: list[Example]
    """Values: number of copies."""
    near_pairs: list[NearPair]
    overlap: Overlap
    broken: int
    """Dialogs with control characters, marks that reorder text, or U+FFFD in place of a character."""
    broken_places: list[str]
    """Places of the first of them."""
    longest: list[Example]
    """Values: tokens."""
    oddest: list[Example]
    """Values: mean bits per character under the frequencies of all; dialogs of 32 characters or more."""
    most_repetitive: list[Example]
    """Values: size after compression by zlib as a fraction, 0 to 1; dialogs of 256 bytes or more."""
    remarks: list[str]
    """What could be improved."""
    steps: int
    """Steps of a pass over the training dialogs."""
    epochs: int | None
    """Passes that make sense where the preset makes too few steps to learn; None where it makes enough."""
    shown: list[ShownDialog]

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from dialogkit.services import display

        return display.inspection(self)
