/* CVE-2021-3716, against a server that speaks TLS only:
 * an attacker in the middle sends options of his own before STARTTLS, or
 * right behind it in the same packet.  The first are refused; the second end
 * the connection.
 *
 *   starttls SOCKET
 */
#include "raw.h"

int main(int argc, char **argv)
{
    uint8_t two[2 * NBD_OPTION_SIZE] = { 0 }, b;
    int fd;

    if (argc < 2)
        FAIL("starttls SOCKET");
    fd = raw_greet(argv[1]);
    raw_option(fd, NBD_OPT_STRUCTURED_REPLY, "", 0);
    if (raw_verdict(fd) != NBD_REP_ERR_TLS_REQD)
        FAIL("STRUCTURED_REPLY before TLS was not refused");
    raw_option(fd, NBD_OPT_SET_META_CONTEXT, "\0\0\0\0\0\0\0\0", 8);
    if (raw_verdict(fd) != NBD_REP_ERR_TLS_REQD)
        FAIL("SET_META_CONTEXT before TLS was not refused");
    nbd_put64(two, NBD_OPTS_MAGIC);
    nbd_put32(two + 8, NBD_OPT_STARTTLS);
    nbd_put64(two + 16, NBD_OPTS_MAGIC);
    nbd_put32(two + 24, NBD_OPT_LIST);
    raw_send(fd, two, sizeof two);
    if (raw_verdict(fd) != NBD_REP_ACK)
        FAIL("STARTTLS refused");
    if (raw_recv(fd, &b, 1))
        FAIL("something was made of bytes behind STARTTLS");
    return 0;
}
