"""The files that shipped experiments read, by the command that builds them: `uniattn-pl data NAME`.

The rows are public sets' own, and are not shipped; which of them, in which order, stands in `data/published`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from uniattn_pl.printed_commands import uniattn

TRAINING_FOLDER, EVALUATION_FOLDER = "../shared/data/train", "../shared/data"


@dataclass(frozen=True)
class PublishedFile:
    """A file of rows of one public set.

    Attributes:
        place: below the folder of its set.
        hub: the public set.
        split: of it.
        fields: that the rows keep; one, of a .raw file, whose text is written as it is.
        digest: SHA-256 of what the rows say, white space aside (`data/published_rows.py`).
        rows: how many there are.
        config: of the public set.
        revision: of it; None: the newest.
        key: the field by which rows are found; None: by a digest of what they say.
        chosen: whether `data/published` lists the rows; else it is the whole split, in its own order.
    """

    place: str
    hub: str
    split: str
    fields: tuple[str, ...]
    digest: str
    rows: int
    config: str | None = None
    revision: str | None = None
    key: str | None = None
    chosen: bool = True

    @property
    def keys(self) -> str:
        """The name of the list of its rows."""
        return self.place.replace("/", "_").rpartition(".")[0] + ".txt"


@dataclass(frozen=True)
class PublishedSet:
    """The files that one command builds.

    Attributes:
        summary: what they are.
        variable: the environment variable that names their folder.
        default: where shipped experiments look without it.
        files: all of them.
    """

    summary: str
    variable: str
    default: str
    files: tuple[PublishedFile, ...]


_PUBMEDQA = (
    *("PMID", "QUESTION", "CONTEXTS", "LABELS", "MESHES", "YEAR"),
    *("reasoning_required_pred", "reasoning_free_pred", "final_decision", "LONG_ANSWER"),
)
_MEDMCQA = ("id", "question", "opa", "opb", "opc", "opd", "cop", "choice_type", "exp", "subject_name", "topic_name")
_COMMONSENSE = ("id", "question", "question_concept", "choices", "answerKey")


def _pubmedqa(split: str, rows: int, digest: str) -> PublishedFile:
    # the set is a script, which is not run; the hub keeps what it makes beside it
    return PublishedFile(
        f"pubmedqa/{split}.jsonl",
        "bigbio/pubmed_qa",
        split,
        _PUBMEDQA,
        digest,
        rows,
        config="pubmed_qa_labeled_fold0_source",
        revision="refs/convert/parquet",
        key="PMID",
    )


SETS = {
    "pmc-1000": PublishedSet(
        "1,000 rows of the PMC-LLaMA instructions",
        "UNIATTN_PL_DATA",
        TRAINING_FOLDER,
        (
            PublishedFile(
                "pmc_llama_instructions_1000.json",
                "axiong/pmc_llama_instructions",
                "train",
                ("instruction", "input", "output", "source"),
                "4e79622287be416ddcc86afc9cf4dddcbe644964a32ae2254370fdffe7f47f5b",
                1000,
            ),
        ),
    ),
    "tulu-1000": PublishedSet(
        "1,000 conversations of one round of the Tulu-3 SFT mixture",
        "UNIATTN_PL_DATA",
        TRAINING_FOLDER,
        (
            PublishedFile(
                "tulu3_sft_filtered_1000.json",
                "allenai/tulu-3-sft-mixture",
                "train",
                ("id", "input", "output", "source"),
                "e1e76a5615f41b3a7cf672481e07ed47c615e5615fd1a70bd00bab6bebe00b3c",
                1000,
                key="id",
            ),
        ),
    ),
    "evaluation": PublishedSet(
        "PubMedQA, MedMCQA, CommonsenseQA and WikiText-2, as the harness names their splits and fields",
        "UNIATTN_PL_EVALUATION_DATA",
        EVALUATION_FOLDER,
        (
            _pubmedqa("train", 450, "fe6e82653075649bd1c21ba3a06a9bf02daa159c9e9b3b16505dfdd79e8b4808"),
            _pubmedqa("validation", 50, "97ce984ce75b3a5380b4bf2ec44d17bd721f0b003eb863acc663b31f0ef6da67"),
            _pubmedqa("test", 500, "d04aebbb2df586891fb40c272a5e0eccdf00f77f5a46cd6974e43fb789ff7b9f"),
            PublishedFile(
                "medmcqa/validation.jsonl",
                "openlifescienceai/medmcqa",
                "validation",
                _MEDMCQA,
                "67ba2a42f11de53f55fd02b5b3eb50c14c8b054a62a352f5ff75385ff7eab8b1",
                4183,
                chosen=False,
            ),
            PublishedFile(
                "commonsense_qa/train.jsonl",
                "tau/commonsense_qa",
                "train",
                _COMMONSENSE,
                "229a85bea0f415347c822fc71bec07a21b4aa4c31cb6f01ad2bd367e6f83eb76",
                9741,
                chosen=False,
            ),
            PublishedFile(
                "commonsense_qa/validation.jsonl",
                "tau/commonsense_qa",
                "validation",
                _COMMONSENSE,
                "d852694b10bf6b2b8b815aa051b63b27f56f9170366cc7cb25273088c0030913",
                1221,
                chosen=False,
            ),
            PublishedFile(
                "wikitext2/wiki.test.raw",
                "Salesforce/wikitext",
                "test",
                ("text",),
                "392aa0766c6d18b0a24ecf30b57d07794ade043b373ae0be6716fb95d18341b4",
                4358,
                config="wikitext-2-raw-v1",
                chosen=False,
            ),
        ),
    ),
}


def how_to_build(place: str) -> str:
    """What to add to an error about a missing file or folder, where a command builds it; else nothing."""
    parts = PurePath(place).parts
    for name, published in SETS.items():
        for file in published.files:
            own = PurePath(file.place).parts
            if parts[-len(own) :] == own or (len(own) > 1 and parts[-1:] == own[:1]):
                way = f" It is built from the hub by: {uniattn('data', name)}"
                rows = "; without a network --embedded takes rows that the product writes itself"
                return way + (rows if published.variable == "UNIATTN_PL_DATA" else "")
    return ""
