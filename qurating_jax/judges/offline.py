"""The offline judge: text statistics in the place of a language model, so that the pipeline runs anywhere.

It is no LLM and its ratings are no measure of quality; it exists to try, test and teach the stages that follow. On each
criterion a text gets a strength: a weighted sum of its statistics, standardised by the constants below. A verdict is
Bradley-Terry with noise and a preference for the slot that is read first, as real judges have:

    p(second preferred) = sigma((s_second - s_first) / temperature + noise * n - position_bias)

where n is a standard normal draw that belongs to (seed, both ids, criterion, order). A verdict thus depends on the two
texts alone, never on the rest of the corpus.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qurating_jax.judges import draws
from qurating_jax.judges.criteria import by_name
from qurating_jax.judges.excerpts import Excerpt
from qurating_jax.method.bradley_terry import sigmoid
from qurating_jax.method.readability import TextStatistics, text_statistics

# Mean and standard deviation of the statistics over 2 400 excerpts of 1 000 to 2 200 characters from eight kinds of
# English prose (books, encyclopedia, news, textbooks, abstracts, forum, questions and answers, web), rounded; the
# spread of rates that are nearly always 0 was set by hand. `hardness_distance` is |grade - 10|.
STANDARD = {
    "flesch_kincaid_grade": (11.2, 4.3),
    "hardness_distance": (3.3, 3.0),
    "sentence_variation": (0.58, 0.19),
    "richness": (0.80, 0.05),
    "long_word_rate": (0.26, 0.084),
    "complex_word_rate": (0.13, 0.066),
    "rare_word_rate": (0.54, 0.09),
    "number_rate": (0.03, 0.04),
    "name_rate": (0.11, 0.10),
    "date_rate": (0.009, 0.02),
    "explanation_rate": (0.010, 0.010),
    "promotion_rate": (0.001, 0.004),
    "letter_share": (0.943, 0.047),
    "odd_share": (0.006, 0.02),
    "repeated_line_share": (0.007, 0.035),
}
# An outlier (a table of numbers) counts no more than this many standard deviations.
LARGEST_DEVIATION = 3.0

# By criterion: what speaks for a text (positive) and against it. Judgement, not measurement.
WEIGHTS = {
    "writing_style": {
        "richness": 1.0,
        "sentence_variation": 0.3,
        "hardness_distance": -0.4,
        "number_rate": -0.5,
        "odd_share": -0.8,
        "letter_share": 0.6,
        "promotion_rate": -0.6,
        "repeated_line_share": -0.5,
    },
    "required_expertise": {
        "complex_word_rate": 1.0,
        "long_word_rate": 0.5,
        "flesch_kincaid_grade": 0.5,
        "rare_word_rate": 0.4,
        "promotion_rate": -0.4,
    },
    "facts_and_trivia": {
        "name_rate": 1.0,
        "date_rate": 0.9,
        "number_rate": 0.6,
        "odd_share": -0.5,
        "promotion_rate": -0.6,
        "repeated_line_share": -0.3,
    },
    "educational_value": {
        "explanation_rate": 1.0,
        "complex_word_rate": 0.4,
        "hardness_distance": -0.4,
        "letter_share": 0.4,
        "name_rate": -0.4,
        "odd_share": -0.5,
        "promotion_rate": -0.7,
        "repeated_line_share": -0.4,
    },
}


def strength(statistics: TextStatistics, criterion: str) -> float:
    """A text's strength on a criterion, a weighted mean of standard deviations; a text without words gets the least.

    Raises:
        KeyError: no weights for the criterion.
    """
    weights = WEIGHTS[criterion]
    scale = math.sqrt(sum(weight * weight for weight in weights.values()))
    if not statistics.num_words:
        return -LARGEST_DEVIATION * sum(map(abs, weights.values())) / scale
    values = vars(statistics) | {"hardness_distance": abs(statistics.flesch_kincaid_grade - 10.0)}
    total = 0.0
    for name, weight in weights.items():
        mean, spread = STANDARD[name]
        total += weight * min(max((values[name] - mean) / spread, -LARGEST_DEVIATION), LARGEST_DEVIATION)
    return total / scale


class OfflineJudge:
    """Judges by text statistics (see the module); `name` says so in every output."""

    name = "offline text statistics"

    def __init__(
        self,
        criteria: Sequence[str],
        *,
        seed: int = 0,
        temperature: float = 0.5,
        noise: float = 0.5,
        position_bias: float = 0.25,
    ) -> None:
        """Sets the judge up.

        Args:
            criteria: names of known criteria.
            seed: the run's seed.
            temperature: the difference in strength that counts one logit, positive.
            noise: standard deviation of the noise, in logits.
            position_bias: logits in favour of the text shown first (negative: second).

        Raises:
            ValueError: an unknown criterion, or a value out of range.
        """
        if not temperature > 0 or not noise >= 0:
            raise ValueError("the offline judge needs a positive temperature and a noise of at least 0")
        self.criteria = tuple(criterion.name for criterion in by_name(criteria))
        self._seed, self._temperature, self._noise, self._position_bias = seed, temperature, noise, position_bias

    def compare(self, excerpts: Sequence[Excerpt]) -> NDArray[np.float64]:
        """Verdicts [k, k, C], see `verdicts.Judge`."""
        statistics = [text_statistics(excerpt.text) for excerpt in excerpts]
        strengths = np.array([[strength(one, criterion) for criterion in self.criteria] for one in statistics])
        logits = (strengths[None, :, :] - strengths[:, None, :]) / self._temperature - self._position_bias
        for first, one in enumerate(excerpts):
            for second, other in enumerate(excerpts):
                for column, criterion in enumerate(self.criteria):
                    names = (criterion, one.document_id, other.document_id)
                    logits[first, second, column] += self._noise * draws.normal(self._seed, "judge noise", *names)
        p_second = sigmoid(logits)
        p_second[np.arange(len(excerpts)), np.arange(len(excerpts))] = np.nan
        return p_second
