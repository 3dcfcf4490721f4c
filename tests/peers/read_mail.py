"""Reads an email as a mail program would, and prints it as JSON.

    python read_mail.py FILE
"""

import json
import sys
from email import policy
from email.parser import BytesParser

with open(sys.argv[1], "rb") as file:
    mail = BytesParser(policy=policy.default).parse(file)

print(
    json.dumps(
        {
            "from": str(mail["from"]),
            "to": str(mail["to"]),
            "subject": str(mail["subject"]),
            "message_id": str(mail["message-id"]),
            "type": mail.get_content_type(),
            "text": mail.get_body(("plain",)).get_content(),
            "html": mail.get_body(("html",)).get_content(),
            "defects": [type(one).__name__ for part in mail.walk() for one in part.defects],
        }
    )
)
