/* Certificates are read and checked when the server starts, with words that say what is wrong. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "server/private.h"

static int no_password(char *out, int size, int writing, void *user) {
    (void)out;
    (void)size;
    (void)writing;
    (void)user;
    return 0;
}

/* The group may be one that is made for it, or the mask of an access list, as of systemd's credentials. */
void mx_server_warn_of_mode(const char *path, const char *secret) {
    struct stat info;
    if (stat(path, &info) == 0 && info.st_mode & 07)
        mx_log(MX_LOG_WARNING, "%s: everybody on this machine may use %s (mode %03o): chmod 600 helps", path, secret,
               (unsigned)info.st_mode & 0777);
}

static mx_status check(const char *certificate, const char *key, const mx_bytes *certificate_text,
                       const mx_bytes *key_text, mx_error *error) {
    mx_status status = MX_OK;
    BIO *a = BIO_new_mem_buf(certificate_text->data, (int)certificate_text->size);
    BIO *b = BIO_new_mem_buf(key_text->data, (int)key_text->size);
    X509 *x = a ? PEM_read_bio_X509(a, NULL, no_password, NULL) : NULL;
    EVP_PKEY *k = b ? PEM_read_bio_PrivateKey(b, NULL, no_password, NULL) : NULL;
    if (!x)
        status = mx_fail(error, MX_INVALID_FILE, "%s: no certificate in it (expected PEM, -----BEGIN CERTIFICATE-----)",
                         certificate);
    else if (!k && strstr(key_text->data, "ENCRYPTED"))
        status = mx_fail(error, MX_UNSUPPORTED,
                         "%s: the private key has a passphrase: expected one without (openssl "
                         "pkey -in FILE -out FILE takes it off)",
                         key);
    else if (!k)
        status = mx_fail(error, MX_INVALID_FILE, "%s: no private key in it (expected PEM, -----BEGIN PRIVATE KEY-----)",
                         key);
    else if (X509_check_private_key(x, k) != 1)
        status = mx_fail(error, MX_INVALID_FILE, "%s and %s do not belong together: the key is not the certificate's",
                         certificate, key);
    else if (X509_cmp_current_time(X509_get0_notAfter(x)) < 0)
        mx_log(MX_LOG_WARNING, "%s: the certificate has expired", certificate);
    ERR_clear_error();
    X509_free(x);
    EVP_PKEY_free(k);
    BIO_free(a);
    BIO_free(b);
    return status;
}

mx_status mx_tls_read(const char *certificate, const char *key, mx_bytes *certificate_out, mx_bytes *key_out,
                      mx_error *error) {
    enum { LIMIT = 1 << 20 };
    if (MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES)
        return mx_fail(error, MX_UNSUPPORTED, "this libmicrohttpd has no TLS: put a proxy that has it in front");
    mx_status status = mx_read_regular_file(certificate, LIMIT, certificate_out, error);
    if (!status) status = mx_read_regular_file(key, LIMIT, key_out, error);
    if (!status && (!certificate_out->size || !key_out->size))
        status = mx_fail(error, MX_INVALID_FILE, "%s is empty", certificate_out->size ? key : certificate);
    if (!status) status = check(certificate, key, certificate_out, key_out, error);
    if (!status) mx_server_warn_of_mode(key, "the private key");
    return status;
}
