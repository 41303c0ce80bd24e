"""AWS's errors as the protocols write them."""

import json
from http import HTTPStatus
from typing import NamedTuple
from xml.sax.saxutils import escape

# What EC2 calls server errors, and refusals; everything else is the client's fault: 400.
_STATUS = {
    "InsufficientInstanceCapacity": 500,
    "InsufficientCapacity": 500,
    "InsufficientAddressCapacity": 500,
    "InternalError": 500,
    "InternalFailure": 500,
    "RequestLimitExceeded": 503,
    "ServiceUnavailable": 503,
    "Unavailable": 503,
    "AuthFailure": 401,
    "UnauthorizedOperation": 403,
    "AccessDenied": 403,
    "ExpiredToken": 403,
    "SignatureDoesNotMatch": 403,
    "InvalidClientTokenId": 403,
}
# EC2 has names of its own for what every service can say.
_EC2_NAMES = {"ExpiredToken": "RequestExpired", "AccessDenied": "UnauthorizedOperation"}
_JSON_NAMES = {"ExpiredToken": "ExpiredTokenException", "AccessDenied": "AccessDeniedException",
               "RequestLimitExceeded": "ThrottlingException"}  # fmt: skip


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def status_line(self) -> str:
        return f"{self.status} {HTTPStatus(self.status).phrase}"


def error(protocol: str, code: str, message: str, status: int | None = None) -> Answer:
    """Return an error in the words of a protocol: ec2, query, s3, json or rest-json."""
    if protocol == "ec2":
        code = _EC2_NAMES.get(code, code)
    number = status or _STATUS.get(code, 400)
    if protocol == "ec2":
        inner = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
        text = f"<Response><Errors><Error>{inner}</Error></Errors><RequestID>fake</RequestID></Response>"
    elif protocol == "query":
        inner = f"<Type>Sender</Type><Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
        text = f"<ErrorResponse><Error>{inner}</Error><RequestId>fake</RequestId></ErrorResponse>"
    elif protocol == "s3":
        text = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    else:
        code = _JSON_NAMES.get(code, code)
        key = "Message" if protocol == "rest-json" else "message"
        body = json.dumps({"__type": code, "ErrorCode": code, key: message}).encode()
        return Answer(number, "application/x-amz-json-1.1", body, (("x-amzn-errortype", code),))
    return Answer(number, "text/xml", f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode())
