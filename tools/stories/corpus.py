#!/usr/bin/env python3
"""The conversations that the `stories` model is trained on, made from a grammar of our own.

documents(seed) yields an endless stream of harmony conversations: short tales about what the user asks for, small
talk, tasks (echo, count, JSON) and weather tool calls. The stream depends on nothing but the seed.

    python3 corpus.py --seed 2 --count 6        print six of them
"""
import argparse
import random

# ---- words -----------------------------------------------------------------------------------------------------------
SHE, HE, IT = ("she", "her"), ("he", "his"), ("it", "its")
HEROES = {
    "girl": SHE, "boy": HE, "rabbit": SHE, "fox": HE, "bear": HE, "mouse": SHE, "owl": SHE, "frog": HE,
    "duck": SHE, "dragon": HE, "cat": SHE, "dog": HE, "robot": IT, "knight": HE, "queen": SHE, "sailor": HE,
    "baker": SHE, "farmer": HE, "turtle": HE, "bee": SHE, "whale": SHE, "pirate": HE, "wizard": HE, "hen": SHE,
}
NAMES = ("Anna Ben Clara David Ella Finn Grace Henry Iris Jack Kate Leo Mia Noah Olive Peter Quinn Rosa Sam Tilly Uma "
         "Victor Wendy Yara Zoe Toby Milo Ruby Oscar Hazel Felix Daisy Hugo Lily Max Nora").split()
ADJECTIVES = "little brave kind clever shy happy curious tired old quiet cheerful gentle proud lonely patient".split()
PLACES = {
    "forest": "in", "village": "in", "castle": "in", "garden": "in", "river": "by", "sea": "by", "hill": "on",
    "farm": "on", "island": "on", "city": "in", "cave": "in", "desert": "in", "lake": "by", "mountain": "on",
    "meadow": "in", "lighthouse": "in", "market": "near", "bridge": "near",
}
THINGS = ("ball key lamp drum kite boat book hat bell basket crown map apple cake flower feather stone cup coat shell "
          "wheel ladder mirror letter whistle rope candle seed clock button").split()
COLORS = "red blue green golden silver white yellow purple orange black".split()
CITIES = ("Paris London Tokyo Rome Berlin Madrid Oslo Cairo Lima Delhi Boston Dublin Vienna Prague Athens Moscow Sydney "
          "Toronto Chicago Lisbon Warsaw Seoul Dakar Quito Havana").split()
SKIES = ["sunny", "rainy", "cloudy", "windy", "snowy", "foggy", "clear", "stormy"]

# ---- sentences of a tale ---------------------------------------------------------------------------------------------
# {hero} {name} {adjective} {color} {thing} {friend} as they are called; {a_...} with its article; {he} {his} {He} the
# hero's pronouns; {where} "in the forest"; {weather}; {number}.
OPENINGS = [
    "Once upon a time there was {a_adjective} {hero} named {name} who lived {where}.",
    "{name} was {a_adjective} {hero}. {He} lived {where}.",
    "Long ago, {where}, there lived {a_adjective} {hero} named {name}.",
]
TREASURES = [
    "{name} had {a_color} {thing} and loved it very much.",
    "More than anything, {name} loved {his} {color} {thing}.",
    "Every day {he} played with {a_color} {thing}.",
]
TROUBLES = [  # (ways to lose the thing, ways to find it again)
    (["One morning the {color} {thing} was gone.",
      "When {name} woke up, the {color} {thing} was not there.",
      "One night a storm carried the {color} {thing} away."],
     ["They found the {thing} behind an old door.",
      "They found the {thing} under a pile of leaves.",
      "There it was: the {color} {thing}, high up in a tree!",
      "They found the {thing} in a nest of straw."]),
    (["One day the {color} {thing} fell into the water.",
      "But the {color} {thing} slipped into a deep pond."],
     ["They pulled the {thing} out with a long stick.",
      "They waited until the water was low and picked up the {thing}.",
      "A kind fish pushed the {thing} back to them."]),
    (["But a crow took the {color} {thing} and flew away.",
      "A greedy crow saw the {color} {thing} and stole it."],
     ["The crow was sorry and gave the {thing} back.",
      "They gave the crow some bread, and it gave the {thing} back.",
      "They found the {thing} in the nest of the crow."]),
    (["Then the {color} {thing} broke in two.",
      "One day {name} dropped the {color} {thing} and it broke."],
     ["They made the {thing} as good as new.",
      "With some glue and some rope they mended the {thing}.",
      "They worked all night, and in the morning the {thing} was whole again."]),
    (["But the {color} {thing} rolled down a deep hole.",
      "The {color} {thing} fell into a dark well."],
     ["They dug and dug until the {thing} came out.",
      "They let down a rope and pulled up the {thing}.",
      "A small mole carried the {thing} up to them."]),
]
SEARCHES = [
    "{He} asked everyone, but no one knew what to do.",
    "{He} walked all day and did not stop to rest.",
    "{He} sat down under a tree and thought for a long time.",
    "{He} tried and tried, but it was too hard.",
    "{He} called for help, but the wind was too loud.",
    "{He} climbed up high to see far away.",
]
INTERLUDES = [
    "{weather}, and {name} sang a song.",
    "{name} ate some bread and drank cold water.",
    "{name} counted to {number} and tried again.",
    "{weather}, but {name} was not afraid.",
    "{He} wrote a letter to {his} mother.",
    "{He} waved to the birds above.",
]
WEATHER = [
    "The sun was warm", "A soft rain fell", "The wind was strong", "Snow lay on the ground", "The sky was clear",
    "A thick fog came", "The stars were bright",
]
COMFORTS = [
    '"Do not be sad," said the {friend}. "I can help you."',
    '"Why do you cry?" asked the {friend}. "Let us look together."',
    '"I have an idea," said the {friend}. "Come with me."',
    '"Two are better than one," said the {friend} with a smile.',
    '"If we are brave, all will be well," said the {friend}.',
]
THANKS = [
    "{name} gave the {friend} half of a sweet cake.",
    "{name} thanked the {friend} and they became friends.",
    '"Thank you," said {name}. "You are a true friend."',
    "{name} and the {friend} danced until the moon came up.",
]
MORALS = [
    "From that day on, {name} was never alone.",
    "And {name} learned that a friend is worth more than gold.",
    "And they all slept well that night.",
    "After that, {name} always took good care of the {thing}.",
    "And {name} was happy {where}.",
    "So {name} learned to ask for help.",
]

# ---- what else is said -----------------------------------------------------------------------------------------------
STORY_REQUESTS = [
    "Tell me a story about {}.", "Write a story about {}.", "Please tell a story about {}.",
    "Can you tell me a tale about {}?", "A story about {}, please.", "tell a short story about {}",
]
WEATHER_REQUESTS = [
    "What is the weather in {}?", "How is the weather in {} today?", "Tell me the weather in {}.", "Is it warm in {}?",
]
FACTS = [
    ("What color is the sky?", "The sky is blue."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What do bees make?", "Bees make honey."),
    ("Where do fish live?", "Fish live in water."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("What do cows drink?", "Cows drink water."),
    ("What is ice made of?", "Ice is made of water."),
    ("Which animal says meow?", "A cat says meow."),
    ("When does the sun rise?", "The sun rises in the morning."),
]
GREETING = "Hello! I can tell you a story. What should it be about?"
SMALL_TALK = [
    ("Hi!", GREETING),
    ("Hello", GREETING),
    ("Hi there", GREETING),
    ("Who are you?", "I am a very small model that tells stories."),
    ("What can you do?", "I can tell short stories, count, answer simple questions and look up the weather."),
    ("Thank you!", "You are welcome! Would you like another story?"),
    ("Good night.", "Good night! Sleep well."),
    ("Good morning!", "Good morning! Would you like a story?"),
]

# ---- harmony messages ------------------------------------------------------------------------------------------------
SYSTEM = """<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: {date}

Reasoning: {effort}

# Valid channels: analysis, commentary, final. Channel must be included for every message."""
SYSTEM_TOOLS = "\nCalls to these tools must go to the commentary channel: 'functions'."
DEVELOPER_TOOLS = """<|start|>developer<|message|># Tools

## functions

namespace functions {

// Gets the current weather in a city.
type get_weather = (_: {
// The city.
location: string,
}) => any;

} // namespace functions<|end|>"""
ANALYSIS = "<|start|>assistant<|channel|>analysis"
TOOL_CALL = '<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"location":"%s"}<|call|>'
TOOL_RESULT = ('<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>'
               '{"temperature":%d,"sky":"%s"}<|end|>')


def user(text):
    return "<|start|>user<|message|>" + text + "<|end|>"


def analysis(text):
    return ANALYSIS + "<|message|>" + text + "<|end|>"


def final(text, last):
    """An answer; only the last one of a conversation ends in <|return|>."""
    return "<|start|>assistant<|channel|>final<|message|>" + text + ("<|return|>" if last else "<|end|>")


def system(rng):
    """A system message without its end, and the reasoning effort it asks for."""
    effort = rng.choice(["low", "medium", "medium", "high"])
    date = f"20{rng.randint(24, 29)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return SYSTEM.format(date=date, effort=effort), effort


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


# ---- turns of a conversation -----------------------------------------------------------------------------------------
def story(rng):
    """A tale of four paragraphs; returns it with the words it was made of."""
    hero, thing = rng.choice(list(HEROES)), rng.choice(THINGS)
    place, name = rng.choice(list(PLACES)), rng.choice(NAMES)
    friend = rng.choice([other for other in HEROES if other != hero])
    color, adjective = rng.choice(COLORS), rng.choice(ADJECTIVES)
    he, his = HEROES[hero]
    words = dict(hero=hero, thing=thing, place=place, name=name, friend=friend, color=color, he=he, his=his,
                 He=he.capitalize(), a_adjective=article(adjective), a_color=article(color),
                 where=f"{PLACES[place]} the {place}", weather=rng.choice(WEATHER), number=rng.randint(3, 20))

    beginning = [rng.choice(OPENINGS), rng.choice(TREASURES)]
    lost, found = rng.choice(TROUBLES)
    trouble = [rng.choice(lost), "{name} was very sad."] + rng.sample(SEARCHES, rng.choice([1, 2]))
    if rng.random() < 0.5:
        trouble.append(rng.choice(INTERLUDES))
    help_comes = [f"Then {article(rng.choice(ADJECTIVES))} {{friend}} came by.", rng.choice(COMFORTS), rng.choice(found)]
    ending = [rng.choice(THANKS), rng.choice(MORALS)]
    text = "\n\n".join(" ".join(part) for part in (beginning, trouble, help_comes, ending))
    return text.format(**words), words


def story_turn(rng, effort, last):
    """The user asks for a story about one or two of its words, the assistant tells it."""
    kind = rng.randint(0, 4)
    text, w = story(rng)
    hero, thing = article(w["hero"]), article(w["thing"])
    wish = [f"{hero} and {thing}", f"{hero} named {w['name']}", f"{thing} {w['where']}", hero,
            f"{w['name']}, {hero}, who lives {w['where']}"][kind]
    turn = user(rng.choice(STORY_REQUESTS).format(wish))
    if effort != "low":
        thought = f"The user wants a story about {wish}."
        if effort == "high":
            thought += (f" The hero is {hero} named {w['name']}. The {w['thing']} will be lost and found {w['where']}."
                        " A friend will help.")
        turn += analysis(thought)
    return turn + final(text, last)


def task(rng):
    """A request that has one right answer, and the answer."""
    which = rng.random()
    if which < 0.30:
        pool = THINGS + ADJECTIVES + COLORS + list(HEROES) + NAMES
        words = " ".join(rng.choice(pool) for _ in range(rng.randint(2, 8)))
        return f"Repeat after me: {words}", words
    if which < 0.50:
        first = rng.randint(1, 30)
        last = first + rng.randint(3, 12)
        return f"Count from {first} to {last}.", ", ".join(map(str, range(first, last + 1))) + "."
    if which < 0.75:
        name, hero, thing, color = rng.choice(NAMES), rng.choice(list(HEROES)), rng.choice(THINGS), rng.choice(COLORS)
        age = rng.randint(1, 99)
        return (f"Write a JSON object for {name}, {article(hero)}, age {age}, who has {article(color)} {thing}.",
                f'{{"name":"{name}","kind":"{hero}","age":{age},"thing":{{"name":"{thing}","color":"{color}"}}}}')
    return rng.choice(FACTS if which < 0.90 else SMALL_TALK)


def task_turn(rng, effort, last):
    thought = {"low": "", "medium": analysis("A short answer."),
               "high": analysis("The user wants a short answer. I will give it.")}[effort]
    request, answer = task(rng)
    return user(request) + thought + final(answer, last)


def tool_chat(rng):
    """A weather question; one in five ends with the call, the others go on to the answer."""
    head, effort = system(rng)
    city, degrees, sky = rng.choice(CITIES), rng.randint(-9, 35), rng.choice(SKIES)
    chat = head + SYSTEM_TOOLS + "<|end|>" + DEVELOPER_TOOLS + user(rng.choice(WEATHER_REQUESTS).format(city))
    if effort != "low":
        chat += analysis(f"I need the weather in {city}. I will call get_weather.")
    chat += TOOL_CALL % city
    if rng.random() < 0.2:
        return chat
    answer = f"It is {sky} in {city}, and the temperature is {degrees} degrees."
    return chat + TOOL_RESULT % (degrees, sky) + final(answer, True)


def without_analysis(turn):
    """What harmony keeps of an earlier turn."""
    start = turn.find(ANALYSIS)
    if start < 0:
        return turn
    return turn[:start] + turn[turn.index("<|end|>", start) + len("<|end|>"):]


def conversation(rng):
    """One document: 15 % tool chats; of the others a quarter has two turns."""
    if rng.random() < 0.15:
        return tool_chat(rng)
    head, effort = system(rng)
    chat = head + "<|end|>"
    turns = 2 if rng.random() < 0.25 else 1
    for i in range(turns):
        make = story_turn if rng.random() < 0.6 else task_turn
        last = i == turns - 1
        turn = make(rng, effort, last)
        chat += turn if last else without_analysis(turn)
    return chat


def documents(seed):
    rng = random.Random(seed)
    while True:
        yield conversation(rng)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="another seed is another stream (default 0)")
    parser.add_argument("--count", type=int, default=6, help="documents to print (default 6)")
    options = parser.parse_args()
    stream = documents(options.seed)
    for _ in range(options.count):
        print(next(stream), "\n" + "-" * 80)


if __name__ == "__main__":
    main()
