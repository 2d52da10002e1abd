/* The NBD protocol's numbers and layouts, as published in
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md,
 * and integers in network byte order. */
#ifndef NBD_WIRE_H
#define NBD_WIRE_H
#include <endian.h>
#include <stdint.h>
#include <string.h>

#define NBD_MAGIC           0x4e42444d41474943ULL   /* "NBDMAGIC" */
#define NBD_OPTS_MAGIC      0x49484156454f5054ULL   /* "IHAVEOPT" */
#define NBD_OLD_MAGIC       0x00420281861253ULL
#define NBD_OPT_REPLY_MAGIC 0x0003e889045565a9ULL
#define NBD_REQUEST_MAGIC   0x25609513U
#define NBD_EXT_REQUEST_MAGIC 0x21e41c71U
#define NBD_SIMPLE_MAGIC    0x67446698U
#define NBD_CHUNK_MAGIC     0x668e33efU
#define NBD_EXT_CHUNK_MAGIC 0x6e8a278cU

enum {                          /* sizes of the fixed parts */
    NBD_OPTION_SIZE = 16,       /* magic 8, option 4, length 4 */
    NBD_OPT_REPLY_SIZE = 20,    /* magic 8, option 4, type 4, length 4 */
    NBD_REQUEST_SIZE = 28,      /* magic 4, flags 2, type 2, cookie 8,
                                   offset 8, length 4 */
    NBD_EXT_REQUEST_SIZE = 32,  /* ... length 8 */
    NBD_SIMPLE_SIZE = 16,       /* magic 4, error 4, cookie 8 */
    NBD_CHUNK_SIZE = 20,        /* magic 4, flags 2, type 2, cookie 8,
                                   length 4 */
    NBD_EXT_CHUNK_SIZE = 32     /* magic 4, flags 2, type 2, cookie 8,
                                   offset 8, length 8 */
};

enum { NBD_FIXED_NEWSTYLE = 1, NBD_NO_ZEROES = 2 };     /* both sides */

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1, NBD_OPT_ABORT = 2, NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5, NBD_OPT_INFO = 6, NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8, NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10, NBD_OPT_EXTENDED_HEADERS = 11
};

#define NBD_REP_ERROR 0x80000000U
enum {
    NBD_REP_ACK = 1, NBD_REP_SERVER = 2, NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4
};
#define NBD_REP_ERR_UNSUP   (NBD_REP_ERROR + 1)
#define NBD_REP_ERR_POLICY  (NBD_REP_ERROR + 2)
#define NBD_REP_ERR_INVALID (NBD_REP_ERROR + 3)
#define NBD_REP_ERR_TLS_REQD (NBD_REP_ERROR + 5)
#define NBD_REP_ERR_UNKNOWN (NBD_REP_ERROR + 6)
#define NBD_REP_ERR_TOO_BIG (NBD_REP_ERROR + 9)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REP_ERROR + 10)

enum {
    NBD_INFO_EXPORT = 0, NBD_INFO_NAME = 1, NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3
};

enum {                          /* transmission flags */
    NBD_HAS_FLAGS = 1, NBD_READ_ONLY = 2, NBD_SEND_FLUSH = 4,
    NBD_SEND_FUA = 8, NBD_ROTATIONAL = 16, NBD_SEND_TRIM = 32,
    NBD_SEND_WRITE_ZEROES = 64, NBD_SEND_DF = 128,
    NBD_CAN_MULTI_CONN = 256, NBD_SEND_RESIZE = 512,
    NBD_SEND_CACHE = 1024, NBD_SEND_FAST_ZERO = 2048,
    NBD_BLOCK_STATUS_PAYLOAD = 4096
};

enum nbd_command {
    NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_DISC, NBD_CMD_FLUSH, NBD_CMD_TRIM,
    NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES, NBD_CMD_BLOCK_STATUS
};
enum {
    NBD_FLAG_FUA = 1, NBD_FLAG_NO_HOLE = 2, NBD_FLAG_DF = 4,
    NBD_FLAG_REQ_ONE = 8, NBD_FLAG_FAST_ZERO = 16, NBD_FLAG_PAYLOAD_LEN = 32
};

enum { NBD_REPLY_DONE = 1 };
enum {
    NBD_REPLY_NONE = 0, NBD_REPLY_OFFSET_DATA = 1, NBD_REPLY_OFFSET_HOLE = 2,
    NBD_REPLY_BLOCK_STATUS = 5, NBD_REPLY_BLOCK_STATUS_EXT = 6,
    NBD_REPLY_ERROR = 0x8001, NBD_REPLY_ERROR_OFFSET = 0x8002
};

enum {
    NBD_EPERM = 1, NBD_EIO = 5, NBD_ENOMEM = 12, NBD_EINVAL = 22,
    NBD_ENOSPC = 28, NBD_EOVERFLOW = 75, NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108
};

enum { NBD_STATE_HOLE = 1, NBD_STATE_ZERO = 2 };
enum { NBD_STATE_DIRTY = 1 };

enum nbd_mode {                 /* how replies look */
    NBD_MODE_SIMPLE, NBD_MODE_STRUCTURED, NBD_MODE_EXTENDED
};

enum {
    NBD_MAX_STRING = 4096,      /* of names, the protocol's own limit */
    NBD_MAX_REQUEST = 32 << 20  /* advertised; what qemu-nbd allows */
};

#define NBD_INTEGER(bits)                                                 \
    static inline uint##bits##_t nbd_get##bits(const void *p)             \
    {                                                                     \
        uint##bits##_t v;                                                 \
        memcpy(&v, p, sizeof v);                                          \
        return be##bits##toh(v);                                          \
    }                                                                     \
    static inline void nbd_put##bits(void *p, uint##bits##_t v)           \
    {                                                                     \
        v = htobe##bits(v);                                               \
        memcpy(p, &v, sizeof v);                                          \
    }
NBD_INTEGER(16)
NBD_INTEGER(32)
NBD_INTEGER(64)
#undef NBD_INTEGER
#endif
