"""One message through Apprise: the order on stdin as JSON, exit status 0 when it was sent. Loaded in a short process only."""

import json
import logging
import sys


def main() -> int:
    """Send what stdin says."""
    order = json.load(sys.stdin)
    try:
        import apprise
    except ImportError:
        print("Apprise is not installed on the rig: pip install 'overnight[notify]'", file=sys.stderr)
        return 1
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # its icons lie on github.com: a phone would fetch them from there
    asset = apprise.AppriseAsset(app_id="Overnight", app_desc="Overnight", image_url_mask="", image_path_mask="")
    sender = apprise.Apprise(asset=asset)
    if not sender.add(order["url"]):
        print("Apprise does not know such an address", file=sys.stderr)
        return 1
    kind = {"warning": apprise.NotifyType.WARNING, "info": apprise.NotifyType.INFO}[order["type"]]
    if not sender.notify(title=order["title"], body=order["body"], notify_type=kind):
        print("Apprise could not send it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
