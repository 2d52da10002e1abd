#!/bin/sh
# TLS: keys and certificates, as libnbd's, QEMU's and our own clients use them.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need nbdinfo nbdcopy qemu-img qemu-nbd certtool
truncate -s 4M "$tmp/disk.raw"
dd if=/dev/urandom of="$tmp/disk.raw" bs=64k count=20 seek=3 conv=notrunc \
    status=none
vimg-nbd --tls-creds x --object secret,id=x "$tmp/disk.raw" 2>&1 |
    grep -q "without TLS" && skip "built without gnutls"

same() { cmp "$tmp/disk.raw" "$tmp/copy.raw" || die "$1"; }

# A shared key.
mkdir "$tmp/psk" "$tmp/bad"
echo "alice:a1b2c3d4e5f60718293a4b5c6d7e8f90" >"$tmp/psk/keys.psk"
echo "alice:00b2c3d4e5f60718293a4b5c6d7e8f90" >"$tmp/bad/keys.psk"
psk() { echo "tls-creds-psk,id=tls0,dir=$tmp/$1,endpoint=$2,username=alice"; }
serve -e 0 -f raw --object "tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/psk" \
    --tls-creds tls0 "$tmp/disk.raw"
uri="nbds+unix://alice@/?socket=$sock&tls-psk-file=$tmp/psk/keys.psk"
nbdcopy "$uri" "$tmp/copy.raw"
same "nbdcopy with a shared key"
vimg convert -f raw -O raw "$uri" "$tmp/copy.raw"
same "vimg with a shared key"
qemu-img convert --object "$(psk psk client)" --image-opts -O raw \
    "driver=nbd,server.type=unix,server.path=$sock,tls-creds=tls0" \
    "$tmp/copy.raw"
same "qemu-img with a shared key"
vimg-nbd -L -k "$sock" --object "$(psk psk client)" --tls-creds tls0 |
    grep -q "exports available: 1" || die "-L"
qemu-nbd -L -k "$sock" --object "$(psk psk client)" --tls-creds tls0 |
    grep -q "exports available: 1" || die "qemu-nbd -L"
# No plain text, no wrong key.
! nbdinfo --size "nbd+unix:///?socket=$sock" 2>/dev/null || die "plain text"
! vimg-nbd -L -k "$sock" >/dev/null 2>&1 || die "plain text"
! nbdinfo --size \
    "nbds+unix://alice@/?socket=$sock&tls-psk-file=$tmp/bad/keys.psk" \
    2>/dev/null || die "wrong key"

# CVE-2021-3716 (nbdkit): what came before STARTTLS counts for nothing, and
# what is sent behind it in the same packet is not kept.
[ ! -x "$builddir/tests/nbd/starttls" ] ||
    "$builddir/tests/nbd/starttls" "$sock" || die "CVE-2021-3716"
stop_server

# Certificates, the client's too.
cd "$tmp"
mkdir pki
key() { certtool --generate-privkey --ecdsa --outfile "$1" 2>/dev/null; }
key ca-key.pem
printf 'cn = test CA\nca\ncert_signing_key\nexpiration_days = 2\n' >ca.info
certtool --generate-self-signed --load-privkey ca-key.pem --template ca.info \
    --outfile pki/ca-cert.pem 2>/dev/null
cert() { # WHO TEMPLATE
    key "pki/$1-key.pem"
    certtool --generate-certificate --load-ca-certificate pki/ca-cert.pem \
        --load-ca-privkey ca-key.pem --load-privkey "pki/$1-key.pem" \
        --template "$2" --outfile "pki/$1-cert.pem" 2>/dev/null
}
printf 'cn = localhost\ndns_name = localhost\ntls_www_server\nsigning_key\nexpiration_days = 2\n' >s.info
printf 'cn = laptop\ntls_www_client\nsigning_key\nexpiration_days = 2\n' >c.info
cert server s.info
cert client c.info
port=$((20000 + $$ % 20000))
creds="tls-creds-x509,id=t,dir=$tmp/pki,endpoint"
tcp() {
    vimg-nbd -t -e 0 -f raw -b 127.0.0.1 -p $port --fork \
        --pid-file "$pidfile" --object "$creds=server" --tls-creds t "$@" \
        "$tmp/disk.raw"
}
tcp
url="nbds://localhost:$port/?tls-certificates=$tmp/pki"
nbdcopy "$url" copy.raw
same "nbdcopy with certificates"
rm copy.raw
vimg convert -f raw -O raw "$url" copy.raw
same "vimg with certificates"
rm copy.raw
vimg convert --object "$creds=client" --image-opts -O raw \
    "driver=nbd,host=localhost,port=$port,tls-creds=t" copy.raw
same "vimg with certificates by --object"
! vimg convert --object "$creds=client" --image-opts -O raw \
    "driver=nbd,host=127.0.0.1,port=$port,tls-creds=t" no.raw 2>/dev/null ||
    die "a certificate of another name was taken"
qemu-nbd -L -b localhost -p $port --object "$creds=client" --tls-creds t |
    grep -q "exports available: 1" || die "qemu-nbd -L"
vimg-nbd -L -b localhost -p $port --object "$creds=client" --tls-creds t |
    grep -q "exports available: 1" || die "-L"
! vimg-nbd -L -b localhost -p $port --object "$creds=client" --tls-creds t \
    --tls-hostname other >/dev/null 2>&1 || die "wrong host name"
mkdir anon
cp pki/ca-cert.pem anon
! nbdinfo --size "nbds://localhost:$port/?tls-certificates=$tmp/anon" \
    2>/dev/null || die "a client without a certificate"
stop_server
tcp --object authz-simple,id=a,identity=CN=laptop --tls-authz a
nbdinfo --size "$url" >/dev/null || die "authz: refused"
stop_server
tcp --object authz-simple,id=a,identity=CN=other --tls-authz a
! nbdinfo --size "$url" 2>/dev/null || die "authz: admitted"
stop_server
# The first rule that matches counts; the policy is for those whom none does.
list() { # admitted|refused SETTINGS
    tcp --object "authz-list,id=a,$2" --tls-authz a
    if [ "$1" = admitted ]; then
        nbdinfo --size "$url" >/dev/null || die "authz-list: refused: $2"
    else
        ! nbdinfo --size "$url" >/dev/null 2>&1 ||
            die "authz-list: admitted: $2"
    fi
    stop_server
}
list admitted 'rules.0.match=CN=lap*,rules.0.format=glob,rules.0.policy=allow'
list refused 'rules.0.match=CN=lap*,rules.0.format=exact,rules.0.policy=allow'
list refused 'rules.0.match=CN=desktop,rules.0.policy=allow,policy=deny'
list admitted 'rules.0.match=CN=desktop,rules.0.policy=deny,policy=allow'
list refused 'rules.0.match=CN=laptop,rules.0.policy=deny,policy=allow'
list refused 'rules.0.match=CN=laptop,rules.0.policy=deny,rules.1.match=CN=*,rules.1.format=glob,rules.1.policy=allow'
list refused 'policy=deny'
list admitted 'policy=allow'

# A list in a file, read anew for every client.
cat >rules <<'END'
{ "policy": "deny", "rules": [
  { "match": "CN=nobody", "policy": "allow", "format": "exact" },
  { "match": "CN=lap*", "policy": "allow", "format": "glob" } ] }
END
tcp --object "authz-list-file,id=a,filename=$tmp/rules" --tls-authz a
nbdinfo --size "$url" >/dev/null || die "authz-list-file: refused"
sed -i 's/"CN=lap/"CN=desk/' rules
! nbdinfo --size "$url" 2>/dev/null || die "authz-list-file: not read anew"
echo '{ "policy": "allow", "rules": 5 }' >rules
! nbdinfo --size "$url" 2>/dev/null || die "authz-list-file: damaged"
stop_server
echo '{ "policy": "deny", "rules": [
  { "match": "CN=laptop", "policy": "allow" } ] }' >rules
tcp --object "authz-list-file,id=a,filename=$tmp/rules,refresh=off" \
    --tls-authz a
echo '{ "policy": "deny" }' >rules
nbdinfo --size "$url" >/dev/null || die "refresh=off: read anew"
stop_server
echo '{ "policy": "allow", "rules": [
  { "match": "CN=laptop", "policy": "deny" } ] }' >rules
tcp --object "authz-list-file,id=a,filename=$tmp/rules,refresh=off" \
    --tls-authz a
echo '{ "policy": "allow" }' >rules
! nbdinfo --size "$url" >/dev/null 2>&1 || die "refresh=off: admitted"
stop_server
# Who has a key is known by the name that goes with it.
for who in alice bob; do
    serve -e 0 -f raw --tls-creds tls0 --tls-authz a \
        --object "tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/psk" \
        --object "authz-simple,id=a,identity=$who" "$tmp/disk.raw"
    if [ $who = alice ]; then
        nbdinfo --size "$uri" >/dev/null || die "authz-simple: alice"
    else
        ! nbdinfo --size "$uri" >/dev/null 2>&1 || die "authz-simple: $who"
    fi
    stop_server
done
bad_list() { # WORDS JSON
    echo "$2" >rules
    ! timeout 10 vimg-nbd -k s -f raw --object "$creds=server" --tls-creds t \
        --object "authz-list-file,id=a,filename=rules" --tls-authz a \
        disk.raw >out 2>&1 || die "accepted: $2"
    grep -q "rules: .*$1" out || die "$2: $(cat out)"
}
bad_list "line 1" 'rules'
bad_list '"polcy" is not expected' '{ "polcy": "deny" }'
bad_list "must be allow or deny" '{ "policy": "perhaps" }'
bad_list "rules.0.policy is missing" '{ "rules": [ { "match": "x" } ] }'
bad_list "rules.0.math is not expected" \
    '{ "rules": [ { "math": "x", "policy": "allow" } ] }'
bad_list "rules.0.match is no string" \
    '{ "rules": [ { "match": 5, "policy": "allow" } ] }'

# A key with a password, from a secret in base64.
mkdir locked
cp pki/ca-cert.pem pki/server-cert.pem locked
certtool --to-p8 --load-privkey pki/server-key.pem --password sesame \
    --pkcs-cipher aes-256 --outfile locked/server-key.pem >/dev/null 2>&1
printf sesame | base64 >secret
vimg-nbd -t -e 0 -f raw -b 127.0.0.1 -p $port --fork --pid-file "$pidfile" \
    --object "secret,id=s,format=base64,file=secret" --tls-creds t \
    --object "tls-creds-x509,id=t,endpoint=server,dir=locked,passwordid=s" \
    disk.raw || die "a key with a password"
nbdcopy "$url" copy.raw
same "a key with a password"
stop_server
! vimg-nbd -f raw -k s --object "secret,id=s,data=wrong" --tls-creds t \
    --object "tls-creds-x509,id=t,endpoint=server,dir=locked,passwordid=s" \
    disk.raw 2>/dev/null || die "a wrong password was taken"
