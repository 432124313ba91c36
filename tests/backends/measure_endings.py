"""Counts how answers to plain questions end: python -m tests.backends.measure_endings [--every N] [--max-tokens N] [--set KEY=VALUE].

Asks the default model, each question in a conversation of its own, with the model's own sampling or what `--set` says; the
seed is the question's number. Prints a line an answer and the counts by the reason it ended; `--texts` shows what was said.
Takes half an hour for 100 questions on one slow core.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from kvchat.backends.base import Answer, Options
from kvchat.backends.resident.seats import SharedModel
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.config import load_config

AT_ONCE = 8
QUESTIONS = (
    "What is the capital of France?",
    "How do I boil an egg?",
    "Write a Python function that adds two numbers.",
    "Explain photosynthesis in simple words.",
    "Give me a list of ten fruits.",
    "What is the difference between a virus and a bacterium?",
    "Write a short poem about the sea.",
    "How does a bicycle stay upright?",
    "Who wrote Romeo and Juliet?",
    "Tell me a joke.",
    "How can I sleep better?",
    "What are the planets of the solar system?",
    "Write an email asking my boss for a day off.",
    "What is machine learning?",
    "Give me a recipe for pancakes.",
    "How do airplanes fly?",
    "Summarize the story of Cinderella.",
    "What should I pack for a trip to the mountains?",
    "Explain the water cycle.",
    "Write a haiku about autumn.",
    "How do I learn to play the guitar?",
    "What causes the seasons?",
    "Compare cats and dogs as pets.",
    "Write a SQL query that selects all users older than 30.",
    "What is inflation?",
    "How do vaccines work?",
    "Plan a three day trip to Rome.",
    "What is the meaning of life?",
    'Translate "good morning" into Spanish, French and German.',
    "Why is the sky blue?",
    "How do I change a flat tire?",
    "Give me five tips for saving money.",
    "Write a story about a dragon and a mouse.",
    "What is a black hole?",
    "How does the internet work?",
    "Make a table of three countries and their capitals.",
    "What are the benefits of exercise?",
    "Explain recursion.",
    "How do I make coffee?",
    "What happened in 1969?",
    "Write a bash script that renames all .txt files to .md.",
    "What is the largest ocean?",
    "How many legs does a spider have?",
    "Give me ideas for a birthday party.",
    "Add 125 and 378.",
    "How do I remove a coffee stain?",
    "Write a song about friendship with a chorus.",
    "What is the speed of light?",
    "How do I start a small business?",
    "Explain gravity to a child.",
    "Name three famous painters and their works.",
    "What is the difference between weather and climate?",
    "How do I train a dog to sit?",
    "Write a limerick about a cat.",
    "What does a heart do?",
    "Count from one to twenty.",
    "How do bees make honey?",
    "What is a healthy breakfast?",
    "Describe a sunset.",
    "Write a dialogue between a teacher and a student.",
    "What is the Pythagorean theorem?",
    "How do I tie a tie?",
    "If I have 12 apples and give away 5, how many are left?",
    "Give me a workout plan for a week.",
    "Explain how a car engine works.",
    "What are the primary colors?",
    "How do I write a good resume?",
    "What is the tallest mountain?",
    "Tell me about the Roman Empire.",
    "What is JSON?",
    "Write HTML for a simple page with a heading and a list.",
    "How do I grow tomatoes?",
    "What is an atom?",
    "How can I be more productive?",
    "What is the difference between HTTP and HTTPS?",
    "Describe the life cycle of a butterfly.",
    "How do I make a paper airplane?",
    "Why do we dream?",
    "What is a good name for a cat?",
    "How do magnets work?",
    "Write a product description for a water bottle.",
    "A train goes 60 miles an hour. How far does it go in three hours?",
    "How do I take care of a cactus?",
    "Explain supply and demand.",
    "What is the fastest animal?",
    "How do I introduce myself in an interview?",
    "What is the greenhouse effect?",
    "Write a birthday message for my grandmother.",
    "How do computers store data?",
    "What is 17 times 4?",
    'Fix this sentence: "he go to school yesterday".',
    "What is 15 percent of 80?",
    "How do I make a budget?",
    "What are the symptoms of a cold?",
    "Write a for loop in JavaScript that prints 1 to 10.",
    "Who was Albert Einstein?",
    "What is the best way to learn a language?",
    "Write a letter to a landlord about a broken heater.",
    "What is a metaphor?",
    "Give three reasons to read books.",
)


def answers(model: SharedModel, options: Options, every: int) -> Iterator[tuple[str, Answer]]:
    """Every so many of the questions, each with its answer; several are answered at once."""
    chosen = list(enumerate(QUESTIONS))[::every]

    def ask(number: int, question: str) -> Answer:
        session = Session(model.seat(), replace(options, seed=number), store=Store())
        session.ask(question)
        assert session.last is not None
        return session.last

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [pool.submit(ask, number, question) for number, question in chosen]
        for (_, question), answer in zip(chosen, found, strict=True):
            yield question, answer.result()


def main(words: Sequence[str] | None = None) -> None:
    """Ask them, and say how the answers ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--texts", action="store_true")
    given = parser.parse_args(words)
    sampling = {f"sampling.{key}": value for key, _, value in (pair.partition("=") for pair in given.set)}
    config = load_config({"chat.save": False, "sampling.max_tokens": given.max_tokens, **sampling})
    model = SharedModel(config)
    reasons: Counter[str] = Counter()
    for question, answer in answers(model, Options(**asdict(config.sampling)), given.every):
        reasons[str(answer.finish_reason)] += 1
        print(
            f"{answer.finish_reason:<10} {answer.usage.completion_tokens:>4} tokens  {question}", flush=True
        )
        if given.texts:
            print(answer.text, "", sep="\n", flush=True)
    model.close()
    print(dict(reasons))


if __name__ == "__main__":
    main()
