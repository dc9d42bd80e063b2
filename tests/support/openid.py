"""An OpenID provider on loopback, as huggingface.co is one to a Space: Gradio's own sign-in runs against it.

`sign_in(app, user, token)` goes the whole way that a browser goes and gives the cookie that it ends with.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey


class OpenId:
    """The provider.

    Attributes:
        environment: What a Space with `hf_oauth: true` finds in its environment.
    """

    def __init__(self):
        self._key, self._codes = RSAKey.generate_key(2048, {"kid": "1"}), {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(provider.discovery if "well-known" in self.path else provider.keys)

            def do_POST(self):
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.answer(provider._codes.pop(form["code"][0]))

            def answer(self, said):
                body = json.dumps(said).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environment = {
            "OAUTH_CLIENT_ID": "weightsmith",
            "OAUTH_CLIENT_SECRET": "between the Space and the Hub",
            "OAUTH_SCOPES": "openid profile contribute-repos gated-repos",
            "OPENID_PROVIDER_URL": self.url,
        }

    @property
    def discovery(self):
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/oauth/authorize",
            "token_endpoint": f"{self.url}/oauth/token",
            "jwks_uri": f"{self.url}/oauth/jwks",
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    @property
    def keys(self):
        return {"keys": [self._key.as_dict(private=False)]}

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    def sign_in(self, app, host, user, token, seconds=3600):
        """Sign a user in to an app and give the session's cookie.

        Args:
            app: Its URL.
            host: By which the browser knows it.
            user: Its name; the account's id is `id-of-` and the name.
            token: That the app is given.
            seconds: That it lives.
        """
        with httpx.Client(base_url=app, headers={"Host": host}) as browser:
            sent = browser.get("/login/huggingface")
            asked = parse_qs(urlsplit(sent.headers["location"]).query)
            who = {
                "sub": f"id-of-{user}",
                "name": user.title(),
                "preferred_username": user,
                "profile": f"https://huggingface.co/{user}",
                "picture": "https://huggingface.co/avatars/x.svg",
                "orgs": [{"preferred_username": f"{user}-org"}],
            }
            lives = {"iat": int(time.time()), "exp": int(time.time()) + 3600}
            claims = who | lives | {"iss": self.url, "aud": "weightsmith", "nonce": asked["nonce"][0]}
            self._codes[user] = {
                "access_token": token,
                "token_type": "bearer",
                "expires_in": seconds,
                "scope": asked["scope"][0],
                "id_token": jwt.encode({"alg": "RS256", "kid": "1"}, claims, self._key),
            }
            back = {"code": user, "state": asked["state"][0]}
            came = browser.get("/login/callback", params=back, headers={"Cookie": _cookie(sent)})
            assert came.status_code == 307, came.text
            return _cookie(came)


def _cookie(reply):
    return reply.headers["set-cookie"].split(";")[0]
