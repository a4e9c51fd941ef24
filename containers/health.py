"""The image's health check: exit with status 0 if the node is ready, or alive if the argument is `/healthz`.

What the container engine asks again and again should be cheap to answer, so this script imports only the standard library.
"""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["CALLBOARD_HEALTH__PORT"]), timeout=2)
try:
    connection.request("GET", sys.argv[1] if len(sys.argv) > 1 else "/readyz")
    answer = connection.getresponse()
    print(answer.read().decode())
    sys.exit(answer.status != 200)
except OSError as error:
    sys.exit(f"no answer: {error}")
