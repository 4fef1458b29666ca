"""Make the small world, in which similarity misleads: corpus, questions with fixed pools, examples, a language model.

    python -m pipelines.world --output DIR [--seed N] [--train N] [--held-out N] [--pretrain N]

DIR/backbone/      a two-layer Llama of width 128 with random weights, and a tokenizer that knows the world's words
DIR/corpus.jsonl   the documents of every pool: id, title (empty), text
DIR/questions/     QUESTIONS with pools of 20: splits train, unseen (names that training never saw together) and
                   unseen_wording (those, asked in new wordings)
DIR/examples/      EXAMPLES for stage pretrain: answers and paraphrases of other facts, about names of training, and of
                   their decoys
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from clara.config.flags import Command, add_setting
from clara.config.world import POOL_SIZE, World
from clara.data.examples import Example, write_examples
from clara.data.questions import Question, write_questions
from clara.errors import InputError
from clara.storage.folders import atomic_write
from clara.storage.manifest import hash_of, up_to_date
from pipelines.world import text

WIDTH = 128  # hidden size
NUM_LAYERS = 2
SPLITS = ("train", "unseen", "unseen_wording")
SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ ('<assistant> ' + message['content'] + ' </s>') if message['role'] == 'assistant' else ('<user> ' + "
    "message['content'] + ' ') }}"
    "{% endfor %}{{ '<assistant> ' if add_generation_prompt else '' }}"
)


def pools(
    split: str, facts: Sequence[text.Fact], wordings: Sequence[str], rivals: int, rng: random.Random
) -> tuple[list[dict[str, str]], list[Question]]:
    """Documents and questions of a split: each fact has its document, four decoys, fifteen other facts in the pool."""
    documents, questions = [], []
    for number, fact in enumerate(facts):
        name = f"{split}-{number:05d}"
        asked = fact.asked(rng.choice(wordings))
        own = {f"{name}-fact": fact.stated(rng.randrange(len(text.FACT_WORDINGS)))}
        own |= {f"{name}-decoy-{i}": decoy for i, decoy in enumerate(text.decoys(asked))}
        documents += [{"id": key, "title": "", "text": value} for key, value in own.items()]
        filling = text.others(facts, number, POOL_SIZE - len(own), rivals, rng)
        candidates = [*own, *(f"{split}-{other:05d}-fact" for other in filling)]
        rng.shuffle(candidates)
        questions.append(Question(name, asked, (fact.answer,), (f"{name}-fact",), tuple(candidates), split=split))
    return documents, questions


def examples(facts: Sequence[text.Fact], rng: random.Random) -> list[Example]:
    """For each fact: a question with its answer; the document, and a decoy about it, in other words."""
    found = []
    for number, fact in enumerate(facts):
        name = f"pretrain-{number:05d}"
        wording, other = rng.sample(range(len(text.FACT_WORDINGS)), 2)
        asked = fact.asked(rng.choice(text.QUESTION_WORDINGS))
        again = rng.choice([fact.stated(other), f"{fact.asked(rng.choice(text.QUESTION_WORDINGS))} {fact.answer}"])
        decoy, retold = rng.sample(text.decoys(asked), 2)
        found += [
            Example(f"{name}-qa", f"{name}-fact", "", fact.stated(wording), "qa", (asked,), (fact.answer,)),
            Example(f"{name}-paraphrase", f"{name}-fact", "", fact.stated(wording), "paraphrase", (), (again,)),
            Example(f"{name}-decoy", f"{name}-decoy", "", decoy, "paraphrase", (), (retold,)),
        ]
    return found


def generate(seed: int, sizes: World) -> tuple[list[dict[str, str]], list[Question], list[Example]]:
    """Documents, questions and examples: a function of seed and sizes.

    Raises:
        InputError: more facts are wanted than there are names with things.
    """
    held_out = text.held_out_names(seed)
    everyone = {(first, last) for first in range(len(text.FIRST_NAMES)) for last in range(len(text.LAST_NAMES))}
    known, unseen = sorted(everyone - held_out), sorted(held_out)
    for option, names, count in (
        ("--train", known, sizes.train),
        ("--pretrain", known, sizes.pretrain),
        ("--held-out", unseen, 2 * sizes.held_out),
    ):
        if count > len(names) * len(text.ASKED_THINGS) // 2:
            raise InputError(
                f"{option}: {count} facts; there are names and things for "
                f"{len(names) * len(text.ASKED_THINGS) // 2}; ask for fewer"
            )
    taken: set[tuple[int, int, int]] = set()
    documents: list[dict[str, str]] = []
    questions: list[Question] = []
    for split in SPLITS:
        rng = random.Random(f"{seed} {split}")
        names, count = (known, sizes.train) if split == "train" else (unseen, sizes.held_out)
        wordings = text.NEW_QUESTION_WORDINGS if split == "unseen_wording" else text.QUESTION_WORDINGS
        made = pools(
            split, text.draw_facts(names, count, rng, taken, of_a_name=1 + sizes.rivals), wordings, sizes.rivals, rng
        )
        documents += made[0]
        questions += made[1]
    rng = random.Random(f"{seed} pretrain")
    return documents, questions, examples(text.draw_facts(known, sizes.pretrain, rng, set(), of_a_name=3), rng)


def save_backbone(directory: Path, seed: int) -> None:
    """Write a language model that has learned nothing, and its tokenizer: one token for each word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *text.vocabulary()])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            initializer_range=0.08,
            bos_token_id=vocabulary["<s>"],
            eos_token_id=vocabulary["</s>"],
            pad_token_id=vocabulary["<pad>"],
        )
    )
    # Memory is read in the place of embeddings, and is a normalised state: both at one scale, or the layers drown in
    # what memory brings (with transformers' own 0.02 for embeddings, 600 steps of pretraining leave right and wrong
    # memory equally good).
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def parser() -> Command:
    """The command line."""
    found = Command("pipelines.world", __doc__)
    add_setting(found, "output", required=True, metavar="DIR")
    add_setting(found, "seed")
    for name in ("train", "held_out", "pretrain", "rivals"):
        add_setting(found, f"world.{name}")
    add_setting(found, "world.paraphrase", "--without-paraphrase")
    found.add_argument("--dry-run", action="store_true", help="print one question with its pool, and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    sizes: World = options.config.world
    recipe = {"program": "pipelines.world", "seed": options.seed, **sizes.model_dump()}
    documents, questions, written = generate(options.seed, sizes)
    if options.dry_run:
        print(shown(documents, questions[0]))
        return 0
    output = Path(options.output)
    corpus = "".join(json.dumps(document) + "\n" for document in documents)
    recipe["corpus"] = hash_of(corpus)
    done = up_to_date(output / "questions", "QUESTIONS", recipe) and up_to_date(output / "examples", "EXAMPLES", recipe)
    if done and (output / "corpus.jsonl").is_file() and (output / "backbone" / "config.json").is_file():
        print(f"{output}: up to date")
        return 0
    save_backbone(output / "backbone", options.seed)
    atomic_write(output / "corpus.jsonl", corpus)
    write_examples(output / "examples", [e for e in written if e.kind == "qa" or sizes.paraphrase], recipe=recipe)
    write_questions(output / "questions", questions, recipe=recipe)  # last: what is there by now is whole
    print(
        f"{output}: {len(documents)} documents, {len(questions)} questions with pools of {POOL_SIZE}, a language "
        "model to train"
    )
    return 0


def shown(documents: Sequence[dict[str, str]], question: Question) -> str:
    """A question with its pool, the document that answers it marked."""
    texts = {document["id"]: document["text"] for document in documents}
    lines = [f"{'*' if key in question.positive_ids else ' '} {texts[key]}" for key in question.candidate_ids]
    return "\n".join([f"{question.question}  ({question.answers[0]})", *lines])
