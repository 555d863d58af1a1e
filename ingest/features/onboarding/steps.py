"""The steps of onboarding as one table: the fields of each, and which of them are never copied anywhere else. Pure.

The structs check the requests and are shown in /openapi.json; everything else follows from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from ingest.api import fields
from ingest.api.contact_fields import ADDRESS, EMAIL_WHAT, LOCAL_PART, MAX_LOCAL_PART, is_phone, plain_phone
from ingest.api.fields import FieldError

MAX_SECONDS: Final = 7 * 86_400
_NOT_BLANK: Final = r"\S"
_PHONE: Final = r"^(\+|00)?[1-9]([ ().\/-]{0,2}[0-9]){6,14}$"
_ID_OF_META: Final = "^[A-Za-z0-9_-]{1,64}$"
_PHONE_WHAT: Final = "a phone number with its country code, such as +49 30 1234567"

Seconds = Annotated[int, fields.number("Time spent on it, by the client's clock", 0, MAX_SECONDS)]


def _words(description: str, high: int) -> Meta:
    what = f"text of at most {high} characters that is not blank"
    return fields.text(description, what=what, low=1, high=high, pattern=_NOT_BLANK)


def _token(description: str, low: int) -> Meta:
    what = f"{low} to 2048 characters without white space"
    return fields.text(description, what=what, low=low, high=2048, pattern="^[!-~]+$")


class BusinessInfo(msgspec.Struct, forbid_unknown_fields=True):
    """The person who sets up a bot, and their business."""

    company_name: Annotated[str, _words("The company's name", 200)]
    contact_name: Annotated[str, _words("The contact person's name", 200)]
    email: Annotated[
        str,
        fields.text(
            "The contact person's email address",
            what=EMAIL_WHAT,
            low=6,
            high=254,
            pattern=f"^{ADDRESS}$",
            examples=["ada@example.com"],
        ),
        LOCAL_PART,
    ]
    country: Annotated[
        str,
        fields.text(
            "The company's country: ISO 3166-1",
            what="a country's two letters, such as DE",
            low=2,
            high=2,
            pattern="^[A-Za-z]{2}$",
            examples=["DE"],
        ),
    ]
    phone: (
        Annotated[
            str, fields.text("The contact person's phone number", what=_PHONE_WHAT, low=7, high=40, pattern=_PHONE)
        ]
        | None
    ) = None
    website: (
        Annotated[
            str,
            fields.text(
                "The company's website",
                what="a URL such as https://www.example.com",
                low=10,
                high=500,
                pattern=r"^https?:\/\/[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?([\/?#][!-~]*)?$",
            ),
        ]
        | None
    ) = None
    industry: Annotated[str, _words("The company's industry", 100)] | None = None
    company_size: (
        Annotated[
            Literal["1", "2-10", "11-50", "51-200", "201-1000", "over-1000"],
            fields.about("Number of employees", what="one of 1, 2-10, 11-50, 51-200, 201-1000, over-1000"),
        ]
        | None
    ) = None
    time_spent_seconds: Seconds | None = None


class WhatsAppIntegration(msgspec.Struct, forbid_unknown_fields=True):
    """The number that the bot answers on. The two tokens are stored encrypted and never shown again."""

    business_account_id: Annotated[
        str,
        fields.text(
            "Meta's id of the WhatsApp Business account",
            what="the account's id at Meta",
            low=1,
            high=64,
            pattern=_ID_OF_META,
        ),
    ]
    phone_number_id: Annotated[
        str,
        fields.text(
            "Meta's id of the phone number",
            what="the number's id at Meta",
            low=1,
            high=64,
            pattern=_ID_OF_META,
        ),
    ]
    phone_number: Annotated[str, fields.text("The phone number", what=_PHONE_WHAT, low=7, high=40, pattern=_PHONE)]
    access_token: Annotated[str, _token("Meta's access token, for sending", 8)]
    display_name: Annotated[str, _words("The name shown in chats", 200)] | None = None
    webhook_verify_token: Annotated[str, _token("The token that verifies Meta's webhooks", 1)] | None = None
    time_spent_seconds: Seconds | None = None


class BotSetup(msgspec.Struct, forbid_unknown_fields=True):
    """The bot's name, language and messages."""

    bot_name: Annotated[str, _words("The bot's name", 100)]
    language: Annotated[
        str,
        fields.text(
            "The language it speaks",
            what="a language such as en or pt-BR",
            low=2,
            high=35,
            pattern="^[A-Za-z]{2,3}([_-][A-Za-z0-9]{2,8}){0,3}$",
            examples=["en", "pt-BR"],
        ),
    ]
    greeting: Annotated[str, _words("Its first message", 1000)]
    away_message: Annotated[str, _words("Its message while nobody is available", 1000)] | None = None
    features: (
        Annotated[
            list[Annotated[str, _words("A feature", 50)]],
            Meta(
                description="Features to enable",
                max_length=20,
                extra={"what": "up to 20 texts of up to 50 characters"},
            ),
        ]
        | None
    ) = None
    hand_over_to_people: Annotated[bool, fields.about("Whether it hands chats over to people")] | None = None
    time_spent_seconds: Seconds | None = None


class Testing(msgspec.Struct, forbid_unknown_fields=True):
    """Confirmation that the bot answers."""

    confirmed: Annotated[
        bool,
        Meta(
            description="A message was sent to the bot, and it answered",
            extra={"what": "true: send the bot a message first"},
            extra_json_schema={"const": True},
        ),
    ]
    notes: Annotated[str, _words("Notes", 1000)] | None = None
    time_spent_seconds: Seconds | None = None


class Step(NamedTuple):
    """A step of onboarding.

    fields: the request's body.  secrets: the fields that are stored encrypted, in whatsapp.accounts.  personal: other
    fields whose values no activity or event repeats.
    """

    name: str
    summary: str
    fields: type[msgspec.Struct]
    secrets: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()

    @property
    def done_at(self) -> str:
        """The column with the time when it was done."""
        return f"{self.name}_completed_at"

    @property
    def required(self) -> list[str]:
        return [name for name, required in _names(self.fields) if required]

    @property
    def optional(self) -> list[str]:
        return [name for name, required in _names(self.fields) if not required and name != "time_spent_seconds"]

    @property
    def known(self) -> list[str]:
        return [name for name, _ in _names(self.fields)]


@cache
def _names(model: type[msgspec.Struct]) -> list[tuple[str, bool]]:
    """The fields' names, and whether they are required."""
    return [(field.encode_name, field.required) for field in msgspec.structs.fields(model)]


STEPS: Final = (
    Step("business_info", "Enter contact and company", BusinessInfo, (), ("contact_name", "email", "phone")),
    Step(
        "whatsapp_integration",
        "Connect a WhatsApp number",
        WhatsAppIntegration,
        ("access_token", "webhook_verify_token"),
        ("business_account_id", "phone_number_id", "phone_number"),
    ),
    Step("bot_setup", "Set up the bot", BotSetup),
    Step("testing", "Confirm that it answers, which completes onboarding", Testing),
)
"""In the order in which they are done."""
OF_NAME: Final = {step.name: step for step in STEPS}
StepName = Literal["business_info", "whatsapp_integration", "bot_setup", "testing"]


_STORED_AS: Final[Mapping[str, Callable[[str], str]]] = {
    "email": str.lower,
    "country": str.upper,
    "phone": plain_phone,
    "phone_number": plain_phone,
}


def cleaned(body: msgspec.Struct) -> dict[str, Any]:
    """The given fields in the form in which they are stored, with texts trimmed."""
    found: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(body).items():
        if value is None:
            continue
        if isinstance(value, str):
            value = _STORED_AS.get(name, str)(value.strip())
        elif isinstance(value, list):
            value = list(dict.fromkeys(each.strip() for each in value))
        found[name] = value
    return found


def check(body: msgspec.Struct) -> list[FieldError]:
    """The errors that the declaration cannot express."""
    if isinstance(body, Testing) and not body.confirmed:
        return [FieldError("confirmed", "must be true: send the bot a message first")]
    if isinstance(body, BusinessInfo) and body.email.strip().index("@") > MAX_LOCAL_PART:
        return [FieldError("email", f"must have at most {MAX_LOCAL_PART} characters before the @")]
    return [
        FieldError(name, f"must be {_PHONE_WHAT}")
        for name in ("phone", "phone_number")
        if (number := getattr(body, name, None)) is not None and not is_phone(number)
    ]


class OnboardingLead(NamedTuple):
    """The fields of a lead that business_info has."""

    email: str
    phone_number: str | None
    company_name: str | None
    first_name: str | None
    last_name: str | None
    country_code: str | None


def lead_of(business: Mapping[str, Any]) -> OnboardingLead | None:
    """The lead that entered this; None without an email address. The last name is everything after the first word."""
    texts = {name: value for name, value in business.items() if isinstance(value, str)}
    if "email" not in texts:
        return None
    first, _, last = texts.get("contact_name", "").strip().partition(" ")
    return OnboardingLead(
        texts["email"],
        texts.get("phone"),
        texts.get("company_name"),
        first[:100] or None,
        last.strip()[:100] or None,
        texts.get("country"),
    )
