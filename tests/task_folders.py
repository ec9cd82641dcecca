"""A folder of tiny files of the paper's ten tasks, and models of the harness whose answers are known beforehand."""

import json
import zlib

from lm_eval.api.model import LM

ARC = {"id": "a1", "question": "Which one shines?", "choices": {"text": ["the sun", "a stone"], "label": ["A", "B"]}}
ROWS = {
    "arc_easy_val": [ARC | {"answerKey": "A"}, ARC | {"question": "Which one lies?", "answerKey": "B"}],
    "arc_easy_train": [
        {"id": "t", "query": "Question: What is wet?\nAnswer:", "choices": ["fire", "rain", "sand"], "gold": 1}
    ],
    "arc_challenge_test": [
        {
            "question": "What falls?",
            "choices": {"text": ["an apple", "smoke", "7"], "label": ["1", "2", "3"]},
            "answerKey": "1",
        }
    ],
    "arc_challenge_train": [ARC | {"answerKey": "A"}],
    "sciq_val_a2": [
        {"question": "Who sat?", "distractor1": "a dog", "distractor2": "a cow", "distractor3": "a hen",
         "correct_answer": "the cat", "support": "The cat sat on a mat."},
        {"question": "Who ran?", "distractor1": "the cat", "distractor2": "a cow", "distractor3": "a hen",
         "correct_answer": "a dog", "support": ""},
    ],
    "logiqa_eval": [
        {"context": "All cats sit.", "question": "What follows?",
         "options": ["Tom sits.", "Tom runs.", "Dogs sit.", "None."], "label": 0},
        {"context": "No dog sits.", "question": "What does not follow?",
         "options": ["Dogs run.", "Dogs lie.", "Rex sits.", "Dogs exist."], "label": 2},
    ],
    "boolq_val": [
        {"question": "does the sun rise", "answer": True, "passage": "The sun rises in the east."},
        {"question": "is snow black", "answer": False, "passage": "Snow is white."},
    ],
    "hellaswag_val_a2": [
        {"ind": 1, "query": "Cooking: A man cuts an onion. He", "choices": ["cries.", "flies.", "is red.", "sits on"],
         "gold": 0},
        {"ind": 2, "query": "Diving: A woman jumps. She", "choices": ["barks.", "gets wet.", "is a board.", "cooks"],
         "gold": 1},
    ],
    "piqa_train": [
        {"goal": "boil water", "sol1": "Use a kettle.", "sol2": "Use a sieve.", "label": 0, "query": "x", "gold": 0},
        {"goal": "dry a shirt", "sol1": "Wet it.", "sol2": "Hang it up.", "label": 1, "query": "x", "gold": 1},
    ],
    "winogrande_xl_val": [
        {"sentence": "Ann thanked Eve because _ had helped her.", "option1": "Ann", "option2": "Eve", "answer": "2"}
    ],
    "winogrande_train": [
        {"sentence": "The cup broke on the stone as _ was hard.", "option1": "the cup", "option2": "the stone",
         "answer": "2", "index": 0}
    ],
    "nq_open_dev_a2": [
        {"question": "who sat on the mat", "answer": ["The Cat", "cat"]},
        {"question": "what colour is snow", "answer": ["white"]},
    ],
    "mmlu_dev": [
        {"subject": "high_school_physics", "question": "What falls? ", "choices": ["Up", "It", "He", "We"],
         "answer": 1},
        {"subject": "anatomy", "question": "How many hands?", "choices": ["1", "2", "3", "4"], "answer": 1},
    ],
    "mmlu_val": [
        {"subject": "anatomy", "question": "How many noses?", "choices": ["1", "2", "3", "4"], "answer": 0},
        {"subject": "high_school_physics", "question": " What rises?", "choices": ["Heat", "Lead", "He", "We"],
         "answer": 0},
        {"subject": "anatomy", "question": "How many toes?", "choices": ["8", "9", "10", "11"], "answer": 2},
    ],
}  # fmt: skip


def make_folder(root, *, times=1, leave_out=()):
    """`ROOT/evals` with the files, every row `times` times under another question number."""
    folder = root / "evals"
    folder.mkdir()
    for name, rows in ROWS.items():
        if not any(name.startswith(task) for task in leave_out):
            write(folder / f"{name}.jsonl", [row for row in rows for _ in range(times)])
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def likelihood(context, continuation):
    """A number that nobody would guess, of the end of the context and the continuation."""
    return -0.01 * (zlib.crc32(f"{context[-60:]}|{continuation}".encode()) % 10_000) - 0.5


class Fake(LM):
    """Answers by `likelihood`, generates by `answers` (question -> text); remembers what it was asked."""

    def __init__(self, answers=None, likelihood=likelihood):
        super().__init__()
        self.answers, self.asked, self._likelihood = answers or {}, [], likelihood

    def loglikelihood(self, requests):
        self.asked += [request.args for request in requests]
        return [(self._likelihood(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        self.asked += [request.args for request in requests]
        questions = [request.args[0].split("\n\n")[-1] for request in requests]
        return [self.answers.get(question, "") for question in questions]
