"""The words of the tasks in English: how facts and questions are put, and clauses of a contract to hide them in.

No clause of the filler contains a name, an answer, or a word by which a fact could be found.
"""

import re

import numpy as np

OPENING = "This is part of a long agreement."
"""Precedes a sentence while it is tokenized, so that it is written as inside a text; it is in no context."""

QUESTIONS_FOLLOW = "Questions about the text above follow."

RETRIEVAL_FACT = "The code word of the {name} account is {word}."
RETRIEVAL_PROMPT = "The code word of the {name} account is"
BINDING_FACT = "Schedule {name} lists, in this order: {items}."
BINDING_PROMPT = "The {ordinal} item of Schedule {name} is"
ORDER_PROMPTS = {
    "first": "Which came first, the {one} or the {other}? The",
    "last": "Which came last, the {one} or the {other}? The",
}

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Alder Apple Ash Aspen Bamboo Beech Birch Cedar Cherry Cypress Daisy Elm Fern Fig Hazel Heather Holly Iris Ivy "
    "Jasmine Juniper Larch Laurel Lemon Lily Linden Lotus Magnolia Maple Mint Oak Olive Orchid Palm Peach Pear Pine "
    "Plum Poplar Rose Rowan Sage Spruce Sycamore Tulip Violet Walnut Willow"
)

CODES = _words(
    "tiger lion eagle horse dog cat bear wolf fox rabbit mouse bird duck goose chicken cow pig sheep goat deer camel "
    "elephant monkey snake turtle frog shark whale dolphin salmon crab spider butterfly bee owl hawk raven swan "
    "penguin zebra giraffe kangaroo panda otter beaver lizard dragon unicorn jaguar hippo iguana koala"
)

ITEMS = _words(
    "paper glass steel wood salt sugar coffee tea milk wine oil gold silver copper iron cotton wool silk leather "
    "rubber cement sand coal rice corn wheat fish bread cheese honey butter pepper eggs meat beer juice paint rope "
    "wire brick stone marble soap candles ink yarn linen velvet gravel nails hay jam"
)

_HAPPENED = (
    "The parties then signed the lease. The engineers then finished the survey. The bank then received the deposit. "
    "The city then ordered the inspection. The board then announced the merger. The court then held the auction. The "
    "members then took the vote. The judge then opened the trial. The directors then held the meeting. The mayor then "
    "led the ceremony. The chairman then gave the speech. The guests then enjoyed the dinner. The town then hosted "
    "the festival. The shop then paid the refund. The heirs then agreed to the sale. The bank then approved the loan. "
    "The workers then began the strike. The members then called the election. The clerk then recorded the transfer. "
    "The council then granted the permit. The inventor then obtained the patent. The family then took out the "
    "mortgage. The clerk then sent the invoice. The states then adopted the treaty. The neighbours then wrote the "
    "petition. The council then passed the budget. The museum then celebrated the opening. The school then gave the "
    "concert. The captain then started the journey. The town then watched the parade. The visitors then won the game. "
    "The state then lifted the ban. The farmers then brought in the harvest. The engineers then installed the update."
)

EVENTS = {sentence.split()[-1]: f"{sentence}." for sentence in _HAPPENED.removesuffix(".").split(". ")}
"""The name of an event, and the sentence in which it happens."""

_SLOTS = {
    "party": (
        "the supplier, the contractor, the tenant, the seller, the licensee, the carrier, the agent, the borrower, "
        "the publisher, the operator, the consultant, the distributor, the installer"
    ),
    "other": (
        "the customer, the owner, the landlord, the buyer, the licensor, the shipper, the principal, the lender, "
        "the author, the authority, the client, the manufacturer, the host"
    ),
    "days": "ten, twenty, thirty, sixty, ninety, a hundred",
    "period": "a week, a month, a quarter, a year, each season, any half year",
    "duty": (
        "repair any damage, restore the premises, correct the defect, return all documents, pay the balance, replace "
        "the faulty parts, submit the required forms, provide written reasons, remove its equipment, confirm receipt "
        "of the request, explain the cause of the delay, resume the suspended work, name a successor, clear the site"
    ),
    "trigger": (
        "written notice, the end of the term, a request by either side, discovery of the fault, the final delivery, "
        "completion of the works, a change of control, the closing date, the failure of a test, the return of the "
        "goods, a breach of this clause, the death of a guarantor"
    ),
    "thing": (
        "the premises, the goods, the services, the equipment, the works, the software, the records, the site, "
        "the vehicles, the materials, the drawings, the facilities, the archive, the machines"
    ),
    "manner": (
        "at its own expense, at no further charge, without undue delay, in good faith, with reasonable care, in "
        "writing, under supervision, to the usual standard, before the close of business, as far as the law allows"
    ),
    "condition": (
        "the weather prevents access, supplies run short, the site is closed, public safety so requires, prices rise "
        "sharply, the due date falls on a holiday, the network is down, staff are absent through illness, a licence "
        "lapses, the road is blocked, the power fails, customs hold the shipment"
    ),
    "risk": (
        "loss, theft, fire, flooding, delay, misuse, accidental damage, breakage, spoilage, unauthorised access, "
        "rising costs, currency movements"
    ),
    "forum": (
        "mediation, arbitration, the local courts, an independent expert, a panel of peers, the regional tribunal, "
        "the trade association, a neutral adviser"
    ),
    "place": (
        "at the registered address, at the depot, by courier, by electronic mail, at the main gate, through the usual "
        "portal, at the branch, in person, by recorded post"
    ),
    "limit": (
        "the fees of the preceding year, the total price, the amount of the claim, the value of the affected goods, "
        "what insurance pays, the cost of replacement, a reasonable sum, the margin earned"
    ),
    "secret": (
        "customer lists, technical plans, trade secrets, pricing models, personal data, source files, business "
        "forecasts, supplier names, research results, security measures"
    ),
}

_CLAUSES = (
    "{party} shall {duty} within {days} days of {trigger}.",
    "{party} shall {duty} {manner} if {condition}.",
    "after {trigger}, {other} may require {party} to {duty} {manner}.",
    "{other} may suspend payment for {thing} while {condition}.",
    "{party} bears the risk of {risk} until {thing} have been accepted by {other}.",
    "no claim for {risk} may exceed {limit}.",
    "any dispute about {thing} goes to {forum} unless {other} objects within {days} days.",
    "{party} keeps {secret} confidential for {days} months after {trigger}.",
    "{other} keeps title to {thing} until {party} has settled every sum due.",
    "notices to {other} are served {place} and take effect {days} hours later.",
    "{party} may not assign its rights in {thing} without the consent of {other}.",
    "consent to the use of {thing} may be withdrawn by {other} upon {trigger}.",
    "{party} insures {thing} against {risk} {manner}.",
    "if {condition}, every deadline that binds {party} moves by {days} days.",
    "{other} may enter and examine {thing} with {days} hours of warning.",
    "interest runs from {trigger} on whatever {party} owes to {other}.",
    "{party} trains its staff in the handling of {secret} at least once in {period}.",
    "the price of {thing} is reviewed once in {period} and may follow {risk} only in part.",
    "nothing in this clause limits what {party} owes to {other} for {risk}.",
    "{thing} are handed over {place}, and {party} notes any visible defect {manner}.",
    "{party} answers for its subcontractors as if they were {party}, even where {condition}.",
    "where {condition}, {party} informs {other} {manner} and proposes another date.",
    "{other} sets off {limit} against sums that {party} demands after {trigger}.",
    "waiver of {risk} as a ground of complaint must be declared {manner} by {other}.",
    "either side may end the part concerning {thing} by notice of {days} days if {condition}.",
    "upon {trigger}, {party} destroys all copies of {secret} and confirms this {place}.",
    "{forum} decides whether {party} must {duty}, and its costs are shared equally.",
    "{party} warrants that {thing} are free from the rights of strangers, {risk} excepted.",
    "records of {thing} are kept for {days} months and shown to {other} {place}.",
    "{party} pays {other} {limit} if it fails to {duty} in time.",
    "the duty to {duty} survives {trigger} for a period of {days} days.",
    "{other} provides {party} with access to {thing} {manner} during {period}.",
    "a delay caused because {condition} gives {party} no right to {limit}.",
    "{party} gives {other} a forecast of its need for {thing} in {period}.",
    "should {party} not {duty}, {other} may have it done by others and recover {limit}.",
    "both sides treat {secret} with the care that they take of their own, {manner}.",
    "failure of {thing} in {period} counts as {risk} for the purposes of this clause.",
    "{party} appoints a person who is reachable {place} whenever {condition}.",
    "changes to {thing} need the signature of {other} and start {days} days after {trigger}.",
    "a reference to {thing} includes whatever {party} adds to them during {period}.",
)

_CHOICES = {slot: tuple(part.strip() for part in parts.split(", ")) for slot, parts in _SLOTS.items()}


def clause(rng: np.random.Generator) -> str:
    """Returns a random sentence of a contract, without a name or an answer of any task in it.

    Args:
      rng: the only source of randomness.
    """
    template = _CLAUSES[rng.integers(len(_CLAUSES))]
    text = re.sub(r"\{(\w+)\}", lambda slot: _drawn(rng, slot[1]), template)
    return text[0].upper() + text[1:]


def _drawn(rng: np.random.Generator, slot: str) -> str:
    choices = _CHOICES[slot]
    return choices[rng.integers(len(choices))]
