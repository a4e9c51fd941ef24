"""The configuration of a mosquitto in a container: the broker that connects the services of a deployment."""

CONFIGURATION = """\
# The broker that connects the services. It uses TLS, one credential per service, and an access list that limits each
# service to its own topics.
per_listener_settings true
listener 8883
certfile /run/secrets/certificate.pem
keyfile /run/secrets/private-key.pem
tls_version tlsv1.3
allow_anonymous false
password_file /run/secrets/passwords
acl_file /run/secrets/access
# Devices connect here. Their client id is their user name, so that no device can take the place of another one, or of a node.
listener 8884
certfile /run/secrets/certificate.pem
keyfile /run/secrets/private-key.pem
tls_version tlsv1.3
use_username_as_clientid true
allow_anonymous false
password_file /run/secrets/device-passwords
acl_file /run/secrets/device-access
set_tcp_nodelay true
# The broker holds nothing that must survive a restart.
persistence false
max_queued_messages 10000
max_packet_size 17825792
log_dest stderr
log_type error
log_type warning
"""
"""The text of `mosquitto.conf`. The files that it names are the broker's secrets."""

BROKER_FILES = ("certificate.pem", "private-key.pem", "passwords", "access", "device-passwords", "device-access")
"""The broker's secret files, in the folder `<secrets>/mosquitto`."""
