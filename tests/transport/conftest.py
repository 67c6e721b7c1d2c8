"""Server, pool and transport for the tests of the transport room, with a policy that is patient for milliseconds."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading

import pytest

from pipeline.transport.client import Transport
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Policy
from tests.transport.server import Server

QUICK = Policy(attempts=4, deadline=60, base=0.001, slow_base=0.002, cap=0.01, stall=10, min_rate=1)


@pytest.fixture
def server():
    """Yield a plain server."""
    it = Server()
    yield it
    it.close()


@pytest.fixture
def pool():
    """Yield a pool of eight connections that knows no proxy."""
    with ConnectionPool(8, environ={}) as it:
        yield it


@pytest.fixture
def events():
    """Return the list that the transport's events go to."""
    return []


@pytest.fixture
def stop():
    """Return the event that stops the transport."""
    return threading.Event()


@pytest.fixture
def transport(pool, events, stop):
    """Return a transport with the quick policy."""
    return Transport(pool, QUICK, stop=stop, on_event=events.append)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Return the path of a PEM file with a key and a certificate for 127.0.0.1 that is its own authority."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - dt.timedelta(1), now + dt.timedelta(1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "test.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls_server(certificate):
    """Yield a server that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    it = Server(context)
    yield it
    it.close()
