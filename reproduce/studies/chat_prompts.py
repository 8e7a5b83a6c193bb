"""Prompts of ordinary chat: made of parts for training, written out for measuring. None is in both."""

import random


def parts(listed: str) -> list[str]:
    """What semicolons separate."""
    return listed.split("; ")


TOPICS = parts(
    "photosynthesis; the water cycle; black holes; the French Revolution; inflation; chess; volcanoes; honey bees; "
    "electric cars; the Roman Empire; vaccines; jazz; the stock market; glaciers; sleep; probability; democracy; "
    "compound interest; DNA; the printing press; whales; earthquakes; coffee; gravity; machine learning; soil; "
    "antibiotics; satellites; bridges; the Silk Road; migration of birds; rust; the immune system; clouds; silk; "
    "steam engines; the alphabet; dreams; a healthy breakfast; recycling"
)
ACTIONS = parts(
    "learn a new language; sleep better; write a cover letter; save money; plan a picnic; train a puppy; "
    "prepare for an exam; grow tomatoes; start running; organize a small kitchen; give a speech; repair a bicycle; "
    "make new friends; read more books; cook rice; clean a window; pack for a hike; draw a face"
)
CODE = parts(
    "reverses a string; checks whether a number is prime; sorts a list of words by length; "
    "counts the vowels of a text; computes the factorial of n; removes duplicates from a list; "
    "finds the largest number in a list; "
    "turns Celsius into Fahrenheit; reads a file line by line; merges two dictionaries"
)
PLACES = parts("Spain; Norway; Brazil; Canada; Poland; Chile; Vietnam; Morocco; Greece; Nepal; Cuba; Ireland")
SENTENCES = parts(
    "The weather is beautiful today; I would like a cup of tea; Where is the train station; She has lost her keys; "
    "We are going to the market; My brother plays the guitar; The shop opens at nine; He has never seen snow"
)
FORMS = (
    ("What is {}?", TOPICS),
    ("Explain {} in simple words.", TOPICS),
    ("Write a short poem about {}.", TOPICS),
    ("Tell me three facts about {}.", TOPICS),
    ("Why is {} important?", TOPICS),
    ("Write a short story about {}.", TOPICS),
    ("Make a quiz question about {} and answer it.", TOPICS),
    ("How can I {}?", ACTIONS),
    ("Give me five tips to {}.", ACTIONS),
    ("Write an email to a friend who wants to {}.", ACTIONS),
    ("Write a Python function that {}.", CODE),
    ("Explain how a program {}.", CODE),
    ("Name a dish from {}.", PLACES),
    ("What is the capital of {}?", PLACES),
    ("Plan a weekend in {}.", PLACES),
    ('Translate into French: "{}."', SENTENCES),
    ('Make this sentence more polite: "{}."', SENTENCES),
    ('Correct the grammar, if needed: "{}."', SENTENCES),
)


def training_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` different prompts."""
    everything = [form.format(part) for form, parts in FORMS for part in parts]
    return random.Random(seed).sample(everything, count)


TEST_PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
    "Hello! How are you today?",
    "What is 12 plus 30?",
    "Name three primary colours.",
    "Give me a name for a black kitten.",
    "What should I cook with eggs and potatoes?",
    "Tell me a joke about a penguin.",
    "Who wrote Romeo and Juliet?",
    "How do I boil an egg?",
    "What does a carpenter do?",
    "List the planets of the solar system.",
    "Write a haiku about autumn leaves.",
    "What is the opposite of hot?",
    "Is a tomato a fruit?",
    "How many days are there in a leap year?",
    "Suggest a birthday present for a grandmother.",
    "What is a synonym for happy?",
    "Write a slogan for a bakery.",
)
