"""Where alerts are sent to: webhooks, e-mail and commands, as `alerts.toml` has them."""

from __future__ import annotations

import json
import os
import smtplib
import string
import subprocess
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError
from lockstep.project import project

Message = dict[str, Any]


@dataclass(frozen=True)
class Channel:
    """A channel by its name. `send` raises OSError, with the reason, if the message has not been taken over."""

    name: str
    send: Callable[[Message], None]


@dataclass(frozen=True)
class Settings:
    """What `alerts.toml` says: the channels, and after how many hours without sealing somebody is told."""

    channels: tuple[Channel, ...] = ()
    unsealed_hours: int = 2


def path() -> Path:
    """LOCKSTEP_ALERTS, or `alerts.toml` at the project's top."""
    return Path(os.environ.get("LOCKSTEP_ALERTS") or project() / "alerts.toml")


def load() -> Settings:
    """The settings; without a file those of one that is empty. Raises LockstepError naming the mistake."""
    file = path()
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if "LOCKSTEP_ALERTS" in os.environ:
            raise LockstepError(f"{file}, which LOCKSTEP_ALERTS names, is missing.") from None
        return Settings()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise LockstepError(f"{file} is not TOML: {e}.") from None
    entries = _Entry(str(file), raw)
    hours = entries.take("unsealed_hours", int, 2)
    listed = entries.take("channels", list, [])
    entries.done()
    channels = [_channel(_Entry(f"{file}, channel {i}", entry)) for i, entry in enumerate(listed, 1)]
    if len({c.name for c in channels}) < len(channels):
        raise LockstepError(f"{file}: two channels have the same name; give each its own.")
    return Settings(tuple(channels), hours)


class _Entry:
    """A table of the file, read key by key; what nobody took is a mistake."""

    def __init__(self, place: str, raw: Any) -> None:
        if not isinstance(raw, dict):
            raise LockstepError(f"{place} is not a table: write [[channels]] above it.")
        self.place = place
        self._raw = {key: self._filled(value) for key, value in raw.items()}

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        value: Any = self._raw.pop(key, default)
        if value is None:
            raise LockstepError(f"{self.place}: {key} is missing.")
        if not isinstance(value, kind) or (isinstance(value, int) and (isinstance(value, bool) or value < 1)):
            names = {
                str: "a text",
                int: "a whole number from 1 on",
                list: "a list",
                dict: "a table",
            }
            raise LockstepError(f"{self.place}: {key} is {value!r}, expected {names[kind]}.")
        return value

    def texts(self, key: str) -> list[str]:
        listed: list[str] = self.take(key, list)
        if not listed or not all(isinstance(text, str) for text in listed):
            raise LockstepError(f"{self.place}: {key} is {listed!r}, expected a list of texts.")
        return listed

    def done(self) -> None:
        if self._raw:
            raise LockstepError(f"{self.place}: there is no setting {', '.join(sorted(self._raw))}.")

    def _filled(self, value: Any) -> Any:
        """Texts with ${NAME} replaced by the environment's value: secrets need not stand in the file."""
        if isinstance(value, str):
            try:
                return string.Template(value).substitute(os.environ)
            except KeyError as e:
                raise LockstepError(f"{self.place} names the environment variable {e}, which is not set.") from None
            except ValueError:
                raise LockstepError(f"{self.place}: a $ that names no variable is written $$, in {value!r}.") from None
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
            return [self._filled(item) for item in value]
        return value


def _channel(entry: _Entry) -> Channel:
    kinds = {"webhook": _webhook, "email": _email, "command": _command}
    kind = entry.take("kind", str)
    if kind not in kinds:
        raise LockstepError(f"{entry.place}: kind is {kind!r}, expected one of {', '.join(kinds)}.")
    name = entry.take("name", str, kind)
    channel = Channel(name, kinds[kind](entry, entry.take("timeout_seconds", int, 10)))
    entry.done()
    return channel


def _webhook(entry: _Entry, timeout: int) -> Callable[[Message], None]:
    url = entry.take("url", str)
    headers = {"Content-Type": "application/json", **entry.take("headers", dict, {})}
    if not url.startswith(("http://", "https://")):
        raise LockstepError(f"{entry.place}: url is {url!r}, expected http:// or https://.")

    def send(message: Message) -> None:
        request = urllib.request.Request(url, json.dumps(message).encode(), headers, method="POST")
        try:
            urllib.request.urlopen(request, timeout=timeout).close()
        except urllib.error.HTTPError as e:
            e.close()
            raise OSError(f"the server answered {e.code} {e.reason}") from None

    return send


def _email(entry: _Entry, timeout: int) -> Callable[[Message], None]:
    host, port = entry.take("host", str), entry.take("port", int, 25)
    security = entry.take("security", str, "none")
    if security not in ("none", "starttls", "tls"):
        raise LockstepError(f"{entry.place}: security is {security!r}, expected none, starttls or tls.")
    user, password = entry.take("user", str, ""), entry.take("password", str, "")
    sender, recipients = entry.take("from", str), entry.texts("to")

    def send(message: Message) -> None:
        mail = EmailMessage()
        mail["Subject"] = message["text"].splitlines()[0][:200]
        mail["From"], mail["To"] = sender, ", ".join(recipients)
        facts = "".join(f"{key}: {value}\n" for key, value in message.items() if key != "text" and value is not None)
        mail.set_content(f"{message['text']}\n\n{facts}")
        kind = smtplib.SMTP_SSL if security == "tls" else smtplib.SMTP
        with kind(host, port, timeout=timeout) as server:  # SMTPException is an OSError
            if security == "starttls":
                server.starttls()
            if user:
                server.login(user, password)
            server.send_message(mail)

    return send


def _command(entry: _Entry, timeout: int) -> Callable[[Message], None]:
    words = entry.texts("command")

    def send(message: Message) -> None:
        try:
            done = subprocess.run(
                words, input=json.dumps(message) + "\n", text=True, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{words[0]} took longer than {timeout} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise OSError(f"{words[0]} ended with exit code {done.returncode}" + "".join(f": {line}" for line in said))

    return send
