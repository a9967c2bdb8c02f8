"""The worker of the chaos runs: the product's own, which may also ask this machine for pictures.

celery -A tests.chaos.app worker -P threads
"""

import os
from functools import partial
from ipaddress import ip_address

from worker.app import app
from worker.datapath import images

LOOPBACK = ip_address("127.0.0.1")

images.Web = partial(
    images.Web, ports=[int(os.environ["CHAOS_HOST_PORT"])], allowed=LOOPBACK.__eq__
)
app.conf.broker_transport_options |= {"visibility_timeout": float(os.environ["CHAOS_VISIBILITY_S"])}
