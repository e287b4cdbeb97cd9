"""X.509 certificates for devices, made by the openssl command."""

import hashlib
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Of its own, so that nothing depends on what the machine's openssl.cnf has.
CONFIGURATION = """
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[device]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
"""


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, as files."""

    certificate: Path
    key: Path

    @property
    def thumbprint(self):
        """SHA-256 of the certificate, in hexadecimal."""
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        return hashlib.sha256(der).hexdigest().upper()


def self_signed(folder, name):
    """A certificate that vouches for itself."""
    return _make(folder, name, "device")


def authority(folder, name):
    """A root that may sign certificates."""
    return _make(folder, name, "authority")


def signed_by(issuer, folder, name):
    """A device's certificate of an authority."""
    return _make(folder, name, "device", "-CA", issuer.certificate, "-CAkey", issuer.key)


def _make(folder, name, extensions, *signed):
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "openssl.cnf"
    configuration.write_text(CONFIGURATION.format(name=name))
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-days", "30", "-config", configuration, "-extensions", extensions]
        + ["-keyout", made.key, "-out", made.certificate, *signed],
        check=True,
        capture_output=True,
    )
    return made
