//! What connects a VM: links, firewall, DNS.
#![forbid(unsafe_code)]
