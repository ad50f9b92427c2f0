"""Stop words: words of grammar that say nothing of what a text is about. Never negation, numbers or modality.

The usual lists (stopwordsiso, NLTK, spaCy) hold "not", "two" and "must" in nearly every language, and many words of
content. These hold articles, pronouns, prepositions, conjunctions and forms of "be" and "have" only; where an article
is the number one, too, it is left out. A language that is not here has none: all its words are kept.
"""

import functools

_TEXTS = {
    "en": """
        a an the this that these those such i me my mine myself you your yours yourself yourselves he him his himself
        she her hers herself it its itself we us our ours ourselves they them their theirs themselves one's who whom
        whose which what when where why how am is are was were be been being have has had having do does did doing
        done let of in on at by for with from to into onto upon about between through during within along among around
        as than per via and or but if so because while although though until since whether either there here then
        again also just very too any some each every please""",
    "zh": """
        的 地 着 了 过 之 所 其 吗 呢 吧 啊 呀 哦 嘛 啦 哇 嗯 我 你 您 他 她 它 咱 我们 你们 他们 她们 它们 咱们 自己
        本身 人家 这 那 此 这个 那个 这些 那些 这里 那里 这儿 那儿 这边 那边 这样 那样 这么 那么 这种 那种 该 谁 什么
        哪 哪个 哪些 哪里 哪儿 怎么 怎样 怎么样 为什么 如何 何 和 与 及 以及 跟 同 并 并且 而 而且 且 或 或者 还是 在 于
        从 自 自从 向 往 朝 对于 关于 为 为了 由 由于 被 把 给 让 使 以 用 按 按照 依照 据 根据 通过 随着 作为 是 就是
        也 还 又 就 便 则 即 因为 因此 因而 所以 虽然 尽管 但 但是 然而 如果 假如 于是 然后 例如 比如 等 等等 请
        时候 的话""",
    "de": """
        der die das den dem des dieser diese dieses diesen diesem jener jene jenes jenen jenem ich mich mir mein meine
        meinen meinem meiner meines du dich dir dein deine deinen deinem deiner deines er ihn ihm sein seine seinen
        seinem seiner seines sie ihr ihre ihren ihrem ihrer ihres es wir uns unser unsere unseren unserem unserer euch
        euer eure man sich selbst wer wen wem wessen was welcher welche welches welchen welchem wann wo warum wie bin
        bist ist sind seid war warst waren wart gewesen habe hast hat haben habt hatte hatten gehabt und oder aber
        wenn weil dass daß ob als da denn sondern damit also auch dann hier dort von vom zu zum zur in im an am auf
        aus bei beim mit nach für um durch über zwischen seit während wegen so doch nur bitte""",
    "fr": """
        le la les l du de des au aux ce cet cette ces celui celle ceux celles ça cela ceci je j'ai me moi mon ma mes tu
        te toi ton ta tes il lui son sa ses elle elles nous notre nos vous votre vos ils eux leur leurs on se soi y en
        qui que qu'il qu'elle quoi dont où quand comment pourquoi quel quelle quels quelles suis es est sommes êtes
        sont étais était étions étaient été être ai as a avons avez ont avais avait avaient avoir c'est d et ou mais si
        car donc or parce comme lorsque puisque à dans par pour sur avec chez entre vers depuis pendant selon afin
        ainsi alors aussi ici là s'il""",
    "es": """
        el la los las lo al del este esta esto estos estas ese esa eso esos esas aquel aquella aquello aquellos
        aquellas yo me mí mi mis mío tú te ti tu tus él le les su sus ella ello nosotros nosotras nos nuestro nuestra
        nuestros nuestras vosotros vosotras os vuestro vuestra ellos ellas usted ustedes se sí quien quienes que qué
        cual cuales cuál cuáles cuando cuándo donde dónde como cómo porque cuyo cuya soy eres es somos sois son era
        eras éramos eran fue fueron sido ser estoy estás está estamos están estaba estaban he has ha hemos han había
        habían de en a con por para entre desde hasta hacia según y e o u pero si pues aunque mientras también así
        entonces aquí allí ahí""",
    "it": """
        il lo la i gli le l del dello della dei degli delle al allo alla ai agli alle dal dallo dalla dai dagli dalle
        nel nello nella nei negli nelle sul sullo sulla sui sugli sulle questo questa questi queste quello quella
        quelli quelle quel quei quegli io me mi mio mia miei mie tu te ti tuo tua tuoi tue egli lui gli suo sua suoi
        sue ella lei esso essa noi ci nostro nostra nostri nostre voi vi vostro vostra vostri vostre essi esse loro si
        sé chi che cui quale quali quando dove come perché sono è siamo siete era ero erano stato stata stati essere
        ho hai ha abbiamo avete hanno aveva avevano avere di a da in con su per tra fra e ed o ma se anche allora così
        qui qua lì là""",
    "pt": """
        o a os as do da dos das no na nos nas ao aos à às pelo pela pelos pelas este esta isto estes estas esse essa
        isso esses essas aquele aquela aquilo aqueles aquelas eu me mim meu minha meus minhas tu te ti teu tua teus
        tuas ele lhe seu sua seus suas ela nós nosso nossa nossos nossas vós vosso vossa você vocês eles elas lhes se
        si quem que qual quais quando onde como porque cujo cuja sou és é somos são era eram foi foram sido ser estou
        está estamos estão estava estavam tenho tem temos têm tinha tinham de em com por para entre desde até sobre e
        ou mas pois se embora enquanto também assim então aqui ali lá""",
    "ca": """
        el la els les l d del dels al als pel pels aquest aquesta aquests aquestes aquell aquella aquells aquelles
        això allò jo em me mi meu meva meus meves tu et te teu teva ell ella ells elles li ens nosaltres nostre nostra
        vosaltres us vostre vostra es se si seu seva seus seves qui què que qual quals quan on com perquè sóc és som
        són era eren ha he han havia de en amb per a entre des fins i o però també així llavors aquí allà""",
    "nl": """
        de het dit dat deze die ik me mij mijn jij je jou jouw u uw hij hem zijn zij ze haar wij we ons onze jullie
        hun hen zich zelf wie wat welke welk wanneer waar waarom hoe ben bent is was waren geweest heb hebt heeft
        hebben had hadden van in op aan bij met voor uit naar tot door om over tussen te en of maar als omdat dus want
        dan er hier daar ook zo toch""",
    "sv": """
        den det de denna detta dessa jag mig min mitt mina du dig din ditt dina han honom hans hon henne hennes vi oss
        vår vårt våra ni er ert era dem deras sig sin sitt sina man vem vad vilken vilket vilka när var varför hur är
        var varit vara har hade haft ha av i på vid med för från till om genom mellan under och eller men som att
        eftersom så då här där också""",
    "da": """
        den det de denne dette disse jeg mig min mit mine du dig din dit dine han ham hans hun hende hendes vi os vores
        I jer jeres dem deres sig sin sit sine man hvem hvad hvilken hvilket hvilke hvornår hvor hvorfor hvordan er var
        været være har havde haft have af i på ved med for fra til om gennem mellem under og eller men som at fordi så
        da her der også""",
    "no": """
        den det de denne dette disse jeg meg min mitt mine du deg din ditt dine han ham hans hun henne hennes vi oss
        vår vårt våre dere deres dem seg sin sitt sine man hvem hva hvilken hvilket hvilke når hvor hvorfor hvordan er
        var vært være har hadde hatt ha av i på ved med for fra til om gjennom mellom under og eller men som at fordi
        så da her der også""",
    "fi": """
        minä minun minut minua sinä sinun sinut sinua hän hänen hänet häntä me meidän meidät meitä te teidän teidät
        teitä he heidän heidät heitä se sen sitä ne niiden niitä tämä tämän tätä nämä näiden tuo tuon nuo joka jonka
        jota jotka kuka kenen mikä minkä mitä milloin missä miksi miten olen olet on olemme olette ovat olin oli olimme
        olivat ollut olla ja tai mutta jos että koska kun kuin niin myös sitten täällä siellä""",
    "pl": """
        ten ta to ci te tego tej tych temu tym tymi tamten tamta ja mnie mi mną mój moja moje mojego mojej ty ciebie
        cię ci tobie tobą twój twoja twoje on ona ono oni one jego jej ich go mu im nim nią nimi my nas nam nami nasz
        nasza nasze wy was wam wami wasz wasza wasze się siebie sobie swój swoja swoje kto kogo komu co czego czemu
        który która które którego której którzy których kiedy gdzie dlaczego jak jestem jesteś jest jesteśmy są był
        była było były być mam ma mają miał w we na z ze do od o u przy po przez dla pod między i oraz lub albo ale a
        że gdy jeśli bo ponieważ więc także też tak tu tam""",
    "cs": """
        ten ta to ti ty toho té těch tomu tom tím tato tento toto já mě mne mi mnou můj moje moji tě tebe ti tvůj tvoje
        on ona ono oni ony jeho jí jej jemu jim jich náš naše nás nám námi vás vám vámi váš vaše se si sebe svůj svoje
        kdo koho komu co čeho čemu který která které kteří kdy kde proč jak jsem jsi je jsme jste jsou byl byla bylo
        byli být mám má máme v ve na z ze do od o u při po pro pod mezi s k i a nebo ale že když jestli protože tak
        také tady tam""",
    "sk": """
        ten tá to tí tie toho tej tých tomu tom tým tento táto toto ja mňa ma mi mnou môj moja moje ty teba ťa ti tvoj
        tvoja tvoje on ona ono oni ony jeho jej ho mu im ich my nás nám nami náš naša naše vy vás vám vami váš vaša
        vaše sa si seba svoj svoja svoje kto koho komu čo čoho čomu ktorý ktorá ktoré ktorí kedy kde prečo ako som si
        je sme ste sú bol bola bolo boli byť mám máme v vo na z zo do od o u pri po pre pod medzi s k i a alebo ale že
        keď ak pretože tak tiež tu tam""",
    "hr": """
        taj ta to ti te ova ovaj ovo ovi ove onaj ona ono oni one ja me mene mi meni moj moja moje ti tebe tebi tvoj
        tvoja tvoje on njega ga njemu mu nje je joj njegov njezin nas nam nama naš naša naše vas vam vama vaš vaša vaše
        njih ih im se sebe svoj svoja svoje tko koga što koji koja koje kojih kada gdje zašto kako sam si smo ste su
        bio bila bilo bili biti u na iz s sa od do o kod po za pod između i ili ali a da ako jer pa tako također tu
        tamo""",
    "ro": """
        acest această acesta aceasta acești aceste acel acea acela aceea acei acele eu mă mine îmi mi meu mea mei mele
        tu te tine îți ți tău ta tăi tale el îl lui îi său sa săi sale ea ei ele ne noi nostru noastră noștri noastre vă
        vouă vostru voastră lor le își se cine ce care cui când unde cum sunt ești este e suntem sunteți eram era erau
        fost fi am ai a avem aveți au de la în din cu pe pentru prin între și sau dar că dacă deci așa aici acolo""",
    "hu": """
        az ez azt ezt annak ennek azok ezek én engem nekem enyém te téged neked tied ő őt neki övé mi minket nekünk ti
        titeket nektek ők őket nekik maga ki kit kinek aki akit mit minek ami amit mely amely mikor hol miért hogyan
        vagyok vagy van vagyunk vagytok vannak volt voltak lenni és meg de hogy ha mert mint is így itt ott""",
    "tr": """
        bu şu o bunu şunu onu bunun şunun onun bunlar şunlar onlar onların ben beni bana benim sen seni sana senin biz
        bizi bize bizim siz sizi size sizin kendi kim kime ne neyi hangi nerede neden nasıl dır dir idi ile için gibi
        kadar göre ve veya ya da de ki ama fakat çünkü eğer burada orada""",
    "id": """
        ini itu ia dia mereka saya aku kami kita kamu anda engkau beliau nya yang siapa apa mana kapan bagaimana mengapa
        adalah ialah di ke dari pada dengan untuk oleh dalam antara tentang dan atau tetapi tapi jika karena bahwa
        sehingga juga sini situ sana""",
    "ru": """
        этот эта это эти этого этой этих этому этом этим тот та то те того той тех тому том тем я меня мне мной мой моя
        моё мое мои ты тебя тебе тобой твой твоя твоё твое твои он его него ему нему им ним она её ее неё нее ей ней оно
        они их них ими ними мы нас нам нами наш наша наше наши вы вас вам вами ваш ваша ваше ваши себя себе собой свой
        своя своё свое свои кто кого кому что чего чему чем который которая которое которые которого когда где почему
        как был была было были быть в во на с со из от до о об у при по для через между к ко под и или но а что
        чтобы если потому так также тоже тут там здесь""",
    "uk": """
        цей ця це ці цього цієї цих цьому цим той та те ті того тієї тих тому я мене мені мною мій моя моє мої ти тебе
        тобі твій твоя твоє твої він його нього йому вона її неї їй воно вони їх них їм ми нас нам нами наш наша наше
        наші ви вас вам вами ваш ваша ваше ваші себе собі свій своя своє свої хто кого кому що чого чому який яка яке
        які коли де як був була було були бути є в у на з із від до о об при по для через між к під і й або але а щоб
        якщо бо так також тут там""",
    "bg": """
        този тази това тези онзи онази онова онези аз мен мене ме ми мой моя мое мои ти теб тебе те твой твоя твое твои
        той него го му негов тя нея я неин то те тях ги им техен нас нашия наш наша наше наши вие вас ви ваш ваша ваше
        ваши се си свой своя свое свои кой кого какво който която което които кога къде защо как съм си е сме сте са
        беше бяха бил била било били в във на с със из от до при по за под между и или но а че ако защото така също
        тук там""",
    "el": """
        ο η το οι τα του της των τον την τους τις αυτός αυτή αυτό αυτοί αυτές αυτά εκείνος εκείνη εκείνο εγώ με μου εσύ
        σε σου εμείς μας εσείς σας ποιος ποια ποιο που τι όταν πότε πού πώς γιατί είμαι είσαι είναι είμαστε είστε ήμουν
        ήταν έχω έχεις έχει έχουμε έχετε έχουν είχε είχαν στο στη στην στον στα στις στους από για και ή αλλά ότι αν
        επειδή έτσι επίσης εδώ εκεί""",
    "ar": """
        هذا هذه هؤلاء ذلك تلك أولئك أنا أنت أنتم هو هي هم هن نحن الذي التي الذين اللاتي من متى أين كيف لماذا ماذا كان
        كانت كانوا يكون تكون في على إلى عن مع بين عند و أو ثم لكن أن إن لأن إذا كما أيضا هنا هناك به بها له لها فيه فيها
        منه منها عليه عليها""",
    "fa": """
        این آن اینها آنها من تو او ما شما ایشان خود که چه کی کجا چرا چگونه است هست هستم هستی هستیم هستند بود بودم بودند
        از در به با برای تا بر را و یا اما ولی اگر چون زیرا هم نیز پس اینجا آنجا""",
    "he": """
        זה זאת זו אלה אלו ההוא ההיא אני אתה את אתם אתן הוא היא הם הן אנחנו לי לך לו לה לנו לכם להם שלי שלך שלו שלה שלנו
        שלכם שלהם אותי אותך אותו אותה אותנו אותם מי מה מתי איפה למה איך היה היתה היו של על עם מן בין אצל ו או אבל כי אם
        גם כאן שם""",
    "hi": """
        यह वह ये वे इस उस इन उन मैं मुझे मेरा मेरी मेरे तू तुम तुम्हें आप आपका आपकी आपके हम हमें हमारा हमारी हमारे वह उसे उन्हें इसे इन्हें
        अपना अपनी अपने जो कौन क्या कब कहाँ क्यों कैसे है हैं हूँ हो था थी थे का की के को से में पर ने तक और या लेकिन कि अगर क्योंकि
        भी तो यहाँ वहाँ""",
}
_ENGLISH_ENDINGS = ("'s", "'m", "'re", "'ve")


def is_stop_word(word: str, language: str) -> bool:
    """Whether a word in lower case is one; `language` is an ISO 639-1 code."""
    if language == "en":
        for ending in _ENGLISH_ENDINGS:
            word = word.removesuffix(ending)
    return word in stop_words(language)


@functools.cache
def stop_words(language: str) -> frozenset[str]:
    """The list of a language; empty where there is none."""
    return frozenset(_TEXTS.get(language, "").lower().split())
