"""An opener of addresses that speaks https and nothing else.

urllib's own opener also reads http, ftp, files and data, and follows a redirect from https to
http. A digest tells when bytes were changed on the way, but not every file here has one, and a
reader of the traffic learns what was asked for.
"""

import ssl
import urllib.request
from email.message import Message
from typing import IO
from urllib.error import URLError
from urllib.request import Request


class HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect if it leads to https, and raises URLError otherwise."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        if not newurl.lower().startswith("https://"):
            fp.close()
            raise URLError(f"got a redirect to {newurl}, expected https")
        # mypy knows two types for the headers of a response.
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def opener() -> urllib.request.OpenerDirector:
    """An opener with certificates checked and the proxy of the environment (HTTPS_PROXY).

    Its `open` raises URLError for every other scheme.
    """
    director = urllib.request.OpenerDirector()
    director.addheaders = [("User-Agent", "pyro-vae")]
    # With a proxy for http, an http address would be passed on to it.
    proxies = {k: v for k, v in urllib.request.getproxies().items() if k == "https"}
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        HttpsRedirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director
