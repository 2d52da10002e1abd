/* TLS by gnutls, with the same objects and files as QEMU's programs:
 * tls-creds-x509 (ca-cert.pem, server-cert.pem, server-key.pem,
 * client-cert.pem, client-key.pem, ca-crl.pem) and tls-creds-psk (keys.psk)
 * in dir=. */
#include <errno.h>
#include <libimg.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "authz.h"
#include "tls.h"

#ifdef HAVE_GNUTLS
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#define VERSIONS ":-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
#define PSK_KINDS ":+ECDHE-PSK:+DHE-PSK:+PSK"

struct creds {
    gnutls_certificate_credentials_t x509;  /* one of the two */
    gnutls_psk_server_credentials_t psk_server;
    gnutls_psk_client_credentials_t psk_client;
    gnutls_priority_t priority;
};

struct nbd_tls_server {
    struct creds creds;
    bool verify;                /* clients must have a certificate */
    struct nbd_authz *authz;    /* NULL = everybody */
};

struct nbd_tls_client {
    struct creds creds;
    char *hostname;
};

static int fail_tls(struct img_error *err, const char *what, int code)
{
    return nbd_fail(err, EIO, "TLS: %s: %s", what, gnutls_strerror(code));
}

/* ---- credentials ------------------------------------------------------- */

static void creds_free(struct creds *c)
{
    if (c->x509)
        gnutls_certificate_free_credentials(c->x509);
    if (c->psk_server)
        gnutls_psk_free_server_credentials(c->psk_server);
    if (c->psk_client)
        gnutls_psk_free_client_credentials(c->psk_client);
    if (c->priority)
        gnutls_priority_deinit(c->priority);
}

/* As it is given; malloc'ed. */
static int raw_secret(const struct nbd_settings *secret, const char *id,
                      char **text, struct img_error *err)
{
    const char *data = nbd_settings_get(secret, "data");
    const char *file = nbd_settings_get(secret, "file");
    size_t room = 0;
    ssize_t n;
    FILE *f;

    if (data) {
        *text = strdup(data);
        return *text ? 0 : nbd_fail(err, ENOMEM, "no memory");
    }
    f = file ? fopen(file, "re") : NULL;
    if (!f)
        return nbd_fail(err, file ? errno : EINVAL, "secret '%s': %s", id,
                        file ? strerror(errno) : "needs data= or file=");
    n = getdelim(text, &room, '\0', f);
    fclose(f);
    return n >= 0 ? 0 : nbd_fail(err, EIO, "secret '%s': is empty", id);
}

/* White space, the newline at the end of a file for one, means nothing. */
static int from_base64(const char *id, char **text, struct img_error *err)
{
    gnutls_datum_t in = { (unsigned char *)*text, 0 }, out;
    char *plain;
    int r;

    for (const char *p = *text; *p; p++)
        if (!strchr(" \t\r\n", *p))
            in.data[in.size++] = (unsigned char)*p;
    r = gnutls_base64_decode2(&in, &out);
    if (r < 0)
        return nbd_fail(err, EINVAL, "secret '%s': is not base64", id);
    plain = strndup((const char *)out.data, out.size);
    gnutls_free(out.data);
    free(*text);
    *text = plain;
    return plain ? 0 : nbd_fail(err, ENOMEM, "no memory");
}

/* The password of the key, from a secret object; NULL = none. */
static int password(const struct nbd_objects *objects,
                    const struct nbd_settings *o, char **text,
                    struct img_error *err)
{
    const char *id = nbd_settings_get(o, "passwordid"), *format;
    const struct nbd_settings *secret;
    int ret;

    *text = NULL;
    if (!id)
        return 0;
    secret = nbd_objects_find(objects, id);
    if (!secret || strcmp(nbd_settings_get(secret, "qom-type"), "secret"))
        return nbd_fail(err, ENOENT, "there is no secret '%s'", id);
    format = nbd_settings_get(secret, "format");
    if (format && strcmp(format, "raw") && strcmp(format, "base64"))
        return nbd_fail(err, EINVAL, "secret '%s': format=%s is not known",
                        id, format);
    ret = raw_secret(secret, id, text, err);
    return ret == 0 && format && !strcmp(format, "base64") ?
        from_base64(id, text, err) : ret;
}

static int load_x509(struct creds *c, const char *dir, bool server,
                     const char *pass, struct img_error *err)
{
    char ca[4096], cert[4096], key[4096], crl[4096];
    const char *who = server ? "server" : "client";
    int r;

    snprintf(ca, sizeof ca, "%s/ca-cert.pem", dir);
    snprintf(crl, sizeof crl, "%s/ca-crl.pem", dir);
    snprintf(cert, sizeof cert, "%s/%s-cert.pem", dir, who);
    snprintf(key, sizeof key, "%s/%s-key.pem", dir, who);
    r = gnutls_certificate_allocate_credentials(&c->x509);
    if (r < 0)
        return fail_tls(err, "credentials", r);
    r = gnutls_certificate_set_x509_trust_file(c->x509, ca,
                                               GNUTLS_X509_FMT_PEM);
    if (r <= 0)
        return fail_tls(err, ca, r ? r : GNUTLS_E_FILE_ERROR);
    if (access(crl, F_OK) == 0) {
        r = gnutls_certificate_set_x509_crl_file(c->x509, crl,
                                                 GNUTLS_X509_FMT_PEM);
        if (r < 0)
            return fail_tls(err, crl, r);
    }
    if (!server && access(cert, F_OK) < 0)
        return 0;               /* a client may have none */
    r = gnutls_certificate_set_x509_key_file2(c->x509, cert, key,
                                              GNUTLS_X509_FMT_PEM, pass, 0);
    if (r < 0)
        return fail_tls(err, cert, r);
    if (server)
        gnutls_certificate_set_known_dh_params(c->x509,
                                               GNUTLS_SEC_PARAM_MEDIUM);
    return 0;
}

/* A client's key: the line "username:hex digits" of keys.psk. */
static int load_psk_client(struct creds *c, const char *file,
                           const char *user, struct img_error *err)
{
    size_t room = 0, len = strlen(user);
    char *line = NULL;
    int r = GNUTLS_E_INSUFFICIENT_CREDENTIALS;
    FILE *f = fopen(file, "re");

    if (!f)
        return nbd_fail(err, errno, "%s: %s", file, strerror(errno));
    while (getline(&line, &room, f) > 0) {
        gnutls_datum_t key;

        if (strncmp(line, user, len) || line[len] != ':')
            continue;
        line[strcspn(line, "\r\n")] = '\0';
        key.data = (unsigned char *)line + len + 1;
        key.size = (unsigned)strlen(line + len + 1);
        r = gnutls_psk_allocate_client_credentials(&c->psk_client);
        if (r == 0)
            r = gnutls_psk_set_client_credentials(c->psk_client, user, &key,
                                                  GNUTLS_PSK_KEY_HEX);
        break;
    }
    free(line);
    fclose(f);
    return r == 0 ? 0 : fail_tls(err, file, r);
}

static int load_psk(struct creds *c, const struct nbd_settings *o,
                    const char *dir, bool server, struct img_error *err)
{
    const char *user = nbd_settings_get(o, "username");
    char file[4096];
    int r;

    snprintf(file, sizeof file, "%s/keys.psk", dir);
    if (!server)
        return load_psk_client(c, file, user ? user : "qemu", err);
    if (access(file, R_OK) < 0)
        return nbd_fail(err, errno, "%s: %s", file, strerror(errno));
    r = gnutls_psk_allocate_server_credentials(&c->psk_server);
    if (r == 0)
        r = gnutls_psk_set_server_credentials_file(c->psk_server, file);
    return r == 0 ? 0 : fail_tls(err, file, r);
}

static int load(struct creds *c, const struct nbd_objects *objects,
                const char *id, bool server, struct img_error *err)
{
    const struct nbd_settings *o = nbd_objects_find(objects, id);
    const char *type, *dir, *endpoint, *given;
    char priority[1024], *pass;
    bool psk;
    int ret;

    if (!o)
        return nbd_fail(err, ENOENT, "--tls-creds: there is no object '%s'",
                        id);
    type = nbd_settings_get(o, "qom-type");
    psk = !strcmp(type, "tls-creds-psk");
    if (!psk && strcmp(type, "tls-creds-x509"))
        return nbd_fail(err, EINVAL, "--tls-creds: '%s' is a %s, not TLS "
                        "credentials", id, type);
    endpoint = nbd_settings_get(o, "endpoint");
    if (strcmp(endpoint ? endpoint : "client", server ? "server" : "client"))
        return nbd_fail(err, EINVAL, "--tls-creds: '%s' needs endpoint=%s",
                        id, server ? "server" : "client");
    dir = nbd_settings_get(o, "dir");
    ret = password(objects, o, &pass, err);
    if (ret == 0)
        ret = psk ? load_psk(c, o, dir ? dir : "/etc/pki/qemu", server, err) :
            load_x509(c, dir ? dir : "/etc/pki/qemu", server, pass, err);
    free(pass);
    if (ret < 0)
        return ret;
    given = nbd_settings_get(o, "priority");
    snprintf(priority, sizeof priority, "%s%s",
             given ? given : "NORMAL" VERSIONS, psk ? PSK_KINDS : "");
    ret = gnutls_priority_init(&c->priority, priority, NULL);
    return ret < 0 ? fail_tls(err, priority, ret) : 0;
}

/* ---- records ----------------------------------------------------------- */

/* gnutls lets one thread receive while another one sends, but not while keys
 * are renewed, which either may come upon: so the lock is held for both, and
 * nobody waits for the client's bytes with it. */
struct conn {
    gnutls_session_t session;
    struct nbd_stream plain;
    pthread_mutex_t lock;
};

static ssize_t pull(gnutls_transport_ptr_t p, void *buf, size_t len)
{
    struct conn *c = p;
    ssize_t r = recv(c->plain.fd, buf, len, MSG_DONTWAIT);

    if (r < 0)
        gnutls_transport_set_errno(c->session, errno == EAGAIN ||
                                   errno == EINTR ? EAGAIN : EIO);
    return r;
}

static ssize_t push(gnutls_transport_ptr_t p, const void *buf, size_t len)
{
    struct conn *c = p;
    struct iovec iov = { (void *)(uintptr_t)buf, len };

    if (c->plain.send(&c->plain, &iov, 1))
        return (ssize_t)len;
    gnutls_transport_set_errno(c->session, EIO);
    return -1;
}

static ssize_t tls_recv(struct nbd_stream *s, void *buf, size_t len)
{
    struct conn *c = s->tls;
    ssize_t r;

    for (;;) {
        pthread_mutex_lock(&c->lock);
        r = gnutls_record_recv(c->session, buf, len);
        pthread_mutex_unlock(&c->lock);
        if (r != GNUTLS_E_INTERRUPTED && r != GNUTLS_E_AGAIN)
            return r < 0 ? -1 : r;
        if (!nbd_stream_wait(s, POLLIN))
            return -1;
    }
}

static bool send_all(struct conn *c, const char *p, size_t left)
{
    while (left) {
        ssize_t r = gnutls_record_send(c->session, p, left);

        if (r == GNUTLS_E_INTERRUPTED || r == GNUTLS_E_AGAIN)
            continue;           /* push waits */
        if (r < 0)
            return false;
        p += r;
        left -= (size_t)r;
    }
    return true;
}

static bool tls_send(struct nbd_stream *s, struct iovec *iov, int n)
{
    struct conn *c = s->tls;
    bool ok = true;

    pthread_mutex_lock(&c->lock);
    c->plain.deadline = s->deadline;
    for (int i = 0; i < n && ok; i++)
        ok = send_all(c, iov[i].iov_base, iov[i].iov_len);
    pthread_mutex_unlock(&c->lock);
    return ok;
}

static int attach(struct conn *c, const struct creds *creds)
{
    int r = gnutls_priority_set(c->session, creds->priority);

    if (r == 0 && creds->x509)
        r = gnutls_credentials_set(c->session, GNUTLS_CRD_CERTIFICATE,
                                   creds->x509);
    if (r == 0 && (creds->psk_server || creds->psk_client))
        r = gnutls_credentials_set(c->session, GNUTLS_CRD_PSK,
                                   creds->psk_server ?
                                   (void *)creds->psk_server :
                                   (void *)creds->psk_client);
    gnutls_transport_set_ptr(c->session, c);
    gnutls_transport_set_pull_function(c->session, pull);
    gnutls_transport_set_push_function(c->session, push);
    return r;
}

static int handshake(struct conn *c)
{
    int r;

    for (;;) {
        r = gnutls_handshake(c->session);
        if (r == GNUTLS_E_AGAIN && !nbd_stream_wait(&c->plain, POLLIN))
            return GNUTLS_E_TIMEDOUT;
        if (r == 0 || gnutls_error_is_fatal(r))
            return r;
    }
}

static struct conn *conn_new(struct nbd_stream *s, unsigned flags)
{
    struct conn *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    c->plain = *s;
    pthread_mutex_init(&c->lock, NULL);
    if (gnutls_init(&c->session, flags) < 0) {
        free(c);
        return NULL;
    }
    return c;
}

static void conn_free(struct conn *c)
{
    gnutls_deinit(c->session);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static void secure(struct nbd_stream *s, struct conn *c)
{
    s->tls = c;
    s->recv = tls_recv;
    s->send = tls_send;
    s->send_pipe = NULL;
}

void nbd_tls_end(struct nbd_stream *s)
{
    struct conn *c = s->tls;

    if (!c)
        return;
    c->plain.deadline = nbd_now() + 1000;
    gnutls_bye(c->session, GNUTLS_SHUT_WR);
    conn_free(c);
    s->tls = NULL;
}

/* ---- server ------------------------------------------------------------ */

int nbd_tls_server_new(const struct nbd_objects *objects, const char *id,
                       const char *authz, struct nbd_tls_server **out,
                       struct img_error *err)
{
    struct nbd_tls_server *t = calloc(1, sizeof *t);
    int ret;

    if (!t)
        return nbd_fail(err, ENOMEM, "no memory");
    t->verify = true;
    ret = load(&t->creds, objects, id, true, err);
    if (ret == 0)
        ret = nbd_settings_bool(nbd_objects_find(objects, id), "verify-peer",
                                &t->verify, err);
    if (ret == 0 && authz)
        ret = nbd_authz_new(objects, authz, &t->authz, err);
    if (ret < 0) {
        nbd_tls_server_free(t);
        return ret;
    }
    *out = t;
    return 0;
}

void nbd_tls_server_free(struct nbd_tls_server *t)
{
    if (!t)
        return;
    creds_free(&t->creds);
    nbd_authz_free(t->authz);
    free(t);
}

/* The distinguished name of the peer's certificate. */
static bool peer_name(gnutls_session_t session, char *name, size_t room)
{
    unsigned n;
    const gnutls_datum_t *certs = gnutls_certificate_get_peers(session, &n);
    gnutls_x509_crt_t crt;
    bool ok;

    if (!certs || !n || gnutls_x509_crt_init(&crt) < 0)
        return false;
    ok = gnutls_x509_crt_import(crt, certs, GNUTLS_X509_FMT_DER) == 0 &&
         gnutls_x509_crt_get_dn(crt, name, &room) == 0;
    gnutls_x509_crt_deinit(crt);
    return ok;
}

static bool admitted(const struct nbd_tls_server *t, struct conn *c)
{
    unsigned status;
    char name[1024];

    if (t->creds.x509 && t->verify &&
        (gnutls_certificate_verify_peers2(c->session, &status) < 0 || status))
        return false;
    if (!t->authz)
        return true;
    if (!t->creds.x509) {
        const char *user = gnutls_psk_server_get_username(c->session);

        return user && nbd_authz_admits(t->authz, user);
    }
    return t->verify && peer_name(c->session, name, sizeof name) &&
           nbd_authz_admits(t->authz, name);
}

bool nbd_tls_accept(struct nbd_tls_server *t, struct nbd_stream *s)
{
    struct conn *c = conn_new(s, GNUTLS_SERVER);

    if (!c)
        return false;
    if (t->creds.x509)
        gnutls_certificate_server_set_request(c->session, t->verify ?
                                              GNUTLS_CERT_REQUIRE :
                                              GNUTLS_CERT_IGNORE);
    if (attach(c, &t->creds) < 0 || handshake(c) < 0 || !admitted(t, c)) {
        conn_free(c);
        return false;
    }
    secure(s, c);
    return true;
}

/* ---- client ------------------------------------------------------------ */

int nbd_tls_client_new(const struct nbd_objects *objects, const char *id,
                       const char *hostname, struct nbd_tls_client **out,
                       struct img_error *err)
{
    struct nbd_tls_client *t = calloc(1, sizeof *t);
    int ret;

    if (!t)
        return nbd_fail(err, ENOMEM, "no memory");
    ret = load(&t->creds, objects, id, false, err);
    if (ret == 0 && t->creds.x509 && !hostname)
        ret = nbd_fail(err, EINVAL, "TLS over this kind of socket needs "
                       "--tls-hostname");
    if (ret == 0 && hostname && !(t->hostname = strdup(hostname)))
        ret = nbd_fail(err, ENOMEM, "no memory");
    if (ret < 0) {
        nbd_tls_client_free(t);
        return ret;
    }
    *out = t;
    return 0;
}

void nbd_tls_client_free(struct nbd_tls_client *t)
{
    if (!t)
        return;
    creds_free(&t->creds);
    free(t->hostname);
    free(t);
}

int nbd_tls_connect(struct nbd_tls_client *t, struct nbd_stream *s,
                    struct img_error *err)
{
    struct conn *c = conn_new(s, GNUTLS_CLIENT);
    int r;

    if (!c)
        return nbd_fail(err, ENOMEM, "no memory");
    r = attach(c, &t->creds);
    if (r == 0 && t->creds.x509)
        gnutls_session_set_verify_cert(c->session, t->hostname, 0);
    if (r == 0)
        r = handshake(c);
    if (r < 0) {
        conn_free(c);
        return fail_tls(err, "handshake", r);
    }
    secure(s, c);
    return 0;
}

#else /* without gnutls */

static int without(struct img_error *err)
{
    return nbd_fail(err, ENOTSUP, "built without TLS");
}

int nbd_tls_server_new(const struct nbd_objects *objects, const char *id,
                       const char *authz, struct nbd_tls_server **out,
                       struct img_error *err)
{
    return without(err);
}

void nbd_tls_server_free(struct nbd_tls_server *t)
{
}

bool nbd_tls_accept(struct nbd_tls_server *t, struct nbd_stream *s)
{
    return false;
}

int nbd_tls_client_new(const struct nbd_objects *objects, const char *id,
                       const char *hostname, struct nbd_tls_client **out,
                       struct img_error *err)
{
    return without(err);
}

void nbd_tls_client_free(struct nbd_tls_client *t)
{
}

int nbd_tls_connect(struct nbd_tls_client *t, struct nbd_stream *s,
                    struct img_error *err)
{
    return without(err);
}

void nbd_tls_end(struct nbd_stream *s)
{
}
#endif
