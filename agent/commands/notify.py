"""`tandem notify test`: does a message arrive?"""

from __future__ import annotations

import typer

from agent.commands.errors import FAILED, CommandError
from agent.commands.options import AsJson, ConfigFile, Overrides

app = typer.Typer(name="notify", help="Messages to people: test.", no_args_is_help=True)


@app.callback()
def notify() -> None:
    """Messages to people."""


@app.command("test")
def send_test(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line is a named boolean
    """Send one message to every notification URL; exit code 1 where one did not take it."""
    import asyncio  # noqa: PLC0415 - paid by the command alone

    from agent.commands.screen import Screen, print_json  # noqa: PLC0415 - as above
    from agent.delivery import AppriseSender, Message, labels, notification_urls  # noqa: PLC0415 - as above
    from agent.known_secrets import URLS_VARIABLE, redactor_of  # noqa: PLC0415 - as above
    from agent.settings import load  # noqa: PLC0415 - as above

    settings = load(config, overrides or [])
    urls = notification_urls(settings.notifications)
    if not urls:
        raise CommandError(
            f"no notification URLs: name a file that holds them in notifications.urls_file, or set {URLS_VARIABLE}"
        )
    redactor = redactor_of(settings)
    title = redactor.text(f"tandem {settings.account_scope}: test")
    message = Message(title, "This is what a message of `tandem` looks like. Nothing has happened.")
    sender = AppriseSender(settings.notifications)

    async def send_all() -> list[str | None]:
        return await asyncio.gather(*(sender.send(url, message) for url in urls))

    faults = [None if fault is None else redactor.text(fault) for fault in asyncio.run(send_all())]
    targets = [
        {"url": label, "delivered": fault is None, "error": fault}
        for label, fault in zip(labels(urls), faults, strict=True)
    ]
    is_ok = all(target["delivered"] for target in targets)
    if as_json:
        print_json({"ok": is_ok, "targets": targets})
    else:
        rows = [
            (target["url"], "delivered" if target["delivered"] else f"FAILED: {target['error']}") for target in targets
        ]
        Screen().pairs([(str(url), found) for url, found in rows])
    if not is_ok:
        raise typer.Exit(FAILED)
