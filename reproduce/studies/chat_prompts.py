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
NAMED = parts(
    "a white puppy; a small sailing boat; a village bakery; a robot; a rock band; a dragon; a detective; "
    "a brown horse; a coffee shop; a goldfish; a chess club; a newspaper"
)
PAIRS = parts(
    "a mouse or a horse; the Moon or the Earth; a lake or an ocean; a minute or an hour; a violin or a cello; "
    "a pebble or a mountain; a village or a city; a whale or a shark"
)
MEANT = parts(
    "generous; reluctant; fragile; brave; ancient; curious; humble; gloomy; rapid; honest; stubborn; precious; vivid"
)
GREETINGS = parts(
    "Hi there!; Good morning!; Hello, I am Anna.; I am bored.; I feel tired today.; Thank you very much.; "
    "Can you help me?; I have a question.; It is raining again.; I lost my keys."
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
    ("Suggest a name for {}.", NAMED),
    ("Describe {} in one sentence.", NAMED),
    ("Which is bigger, {}?", PAIRS),
    ("What does {} mean?", MEANT),
    ("Give me a sentence with the word {}.", MEANT),
    ("{}", GREETINGS),
)


def training_prompts(count: int) -> list[str]:
    """`count` different prompts."""
    everything = [form.format(part) for form, parts in FORMS for part in parts]
    return random.Random(0).sample(everything, count)


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
    "How far away is the Sun?",
    "Who painted the Mona Lisa?",
    "When did the Second World War end?",
    "Which river flows through London?",
    "Name the longest river in Africa.",
    "How many legs does a spider have?",
    "What language do people speak in Argentina?",
    "At what temperature does water boil?",
    "Who was the first person to walk on the Moon?",
    "How many continents are there?",
    "What currency is used in Japan?",
    "Which planet has rings?",
    "What do cows eat?",
    "Where do penguins live?",
    "Why do leaves change colour before winter?",
    "Why do cats purr?",
    "What causes thunder?",
    "How does a refrigerator keep food cold?",
    "Why does ice float on water?",
    "What happens when you mix vinegar and baking soda?",
    "What is the difference between a frog and a toad?",
    "Which is heavier, a kilogram of feathers or a kilogram of iron?",
    "How do submarines dive?",
    "Why do we yawn?",
    "Is glass a liquid or a solid?",
    "Can fish close their eyes?",
    "What is 7 times 8?",
    "If I have 15 apples and give away 6, how many are left?",
    "Half of my class of 24 pupils is ill. How many came to school?",
    "Convert 3 kilometres into metres.",
    "What is the square root of 81?",
    "A train leaves at 9:15 and arrives at 11:00. How long was the ride?",
    "Which number comes next: 2, 4, 8, 16?",
    "Is 51 a prime number?",
    "Add up 4, 9 and 20 and then subtract 3.",
    "What day comes after Thursday?",
    "Please summarize in one line: The meeting was moved from Monday to Wednesday because the manager is away.",
    "Rewrite in the past tense: I walk to work every day.",
    "Turn this into a question: The museum is closed on Sundays.",
    "Put these words in alphabetical order: pear, apple, fig, cherry.",
    "Find the adjective in this sentence: The old dog slept.",
    "Shorten this: Due to the fact that it was raining, we decided that we would stay at home.",
    "What is the plural of mouse?",
    'Spell the word "necessary" backwards.',
    "Give three words that rhyme with light.",
    "What part of speech is the word quickly?",
    "Say goodbye in Spanish.",
    "How do you say thank you in German?",
    "Write a two-line rhyme about breakfast.",
    "Begin a fairy tale about a lonely lighthouse keeper.",
    "Invent a holiday and explain how it is celebrated.",
    "Write a limerick about a lazy gardener.",
    "Compose a short message to thank a neighbour for feeding my fish.",
    "Write a polite note that declines a wedding invitation.",
    "Draft a text to tell my boss that the bus is late.",
    "Write a product description for a wooden spoon.",
    "Give me a title for a mystery novel set in a library.",
    "Come up with a motto for a hiking club.",
    "Write one paragraph about your favourite season.",
    "Tell me a riddle.",
    "What makes a good friend?",
    "Should children have homework?",
    "I feel nervous before a job interview. What can I do?",
    "My plant has yellow leaves. What is wrong with it?",
    "My phone battery dies quickly. Any advice?",
    "I cannot decide between tea and coffee. Help me.",
    "How can I remember people's names?",
    "What is a good gift for a teacher?",
    "My neighbour plays loud music at night. What should I say?",
    "I have one hour free. Suggest something to do.",
    "What should I pack for three days at the beach?",
    "Recommend a board game for four people.",
    "How long should I cook pasta?",
    "What can I use instead of butter in a cake?",
    "How do I get a coffee stain out of a shirt?",
    "Suggest a vegetarian dinner with beans.",
    "How much water should an adult drink every day?",
    "Name a light snack for the afternoon.",
    "Write a JavaScript line that prints hello.",
    "What does HTML stand for?",
    "How do I make a list in Python?",
    "What is a variable in programming?",
    "Explain the word algorithm to a child.",
    "What is the difference between a laptop and a tablet?",
    "List five animals that live in the desert.",
    "Name two inventions of Thomas Edison.",
    "Give an example of a renewable energy source.",
    "Which sports use a net?",
    "Are you a human?",
    "Who made you?",
)
