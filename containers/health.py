"""What the container engine asks again and again: is the node ready? Starts quickly, for it is started often."""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["CALLBOARD_HEALTH__PORT"]), timeout=2)
try:
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    print(answer.read().decode())
    sys.exit(answer.status != 200)
except OSError as error:
    sys.exit(f"no answer: {error}")
