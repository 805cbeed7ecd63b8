"""Messages to the owner: the morning's report, and at once only what cannot wait.

A process of its own (`python -m daemon.notify`), so that no mail server can ever hold up the planner.

    config.py      the channels of config.toml
    message.py     a message, its bounds, several in one
    decide.py      pure: from what was seen to what is sent now
    look.py        what is seen: the queue, the rig, the GPUs
    timing.py      pure: when a channel sends which of them
    outbox.py      what is to be sent, on disk: over restarts, and never forgotten
    addresses.py   S32: the address is checked, and then it is the one that is connected to
    senders.py     ntfy, e-mail, signed webhooks, Apprise, the dead-man ping
    messenger.py   the process: looks, decides, and lets each channel send in a thread of its own
"""
